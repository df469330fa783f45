//! Which system calls a container may make: the facts of Docker's default
//! profile, by topic, and by the capability that opens more of them.
//!
//! Left out though older Docker releases allow them: `io_uring_*`, which goes
//! around other filters.

/// System calls that every container may make, by topic.
pub(super) const ALWAYS: [&str; 12] = [
    // Files by name.
    "access chdir chmod chown chown32 creat faccessat faccessat2 fchmodat fchmodat2 fchownat \
     fstatat64 futimesat getcwd lchown lchown32 link linkat lstat lstat64 mkdir mkdirat mknod \
     mknodat name_to_handle_at newfstatat open openat openat2 readlink readlinkat rename renameat \
     renameat2 rmdir stat stat64 statfs statfs64 statx symlink symlinkat truncate truncate64 umask \
     unlink unlinkat utime utimensat utimensat_time64 utimes",
    // Files by descriptor.
    "_llseek cachestat close close_range copy_file_range dup dup2 dup3 fadvise64 fadvise64_64 \
     fallocate fchdir fchmod fchown fchown32 fcntl fcntl64 fdatasync flock fstat fstat64 fstatfs \
     fstatfs64 fsync ftruncate ftruncate64 getdents getdents64 ioctl lseek pread64 preadv preadv2 \
     pwrite64 pwritev pwritev2 read readahead readv sendfile sendfile64 splice sync sync_file_range \
     syncfs tee vmsplice write writev",
    // Extended attributes.
    "fgetxattr flistxattr fremovexattr fsetxattr getxattr getxattrat lgetxattr listxattr \
     listxattrat llistxattr lremovexattr lsetxattr removexattr removexattrat setxattr setxattrat",
    // Waiting for events.
    "_newselect epoll_create epoll_create1 epoll_ctl epoll_ctl_old epoll_pwait epoll_pwait2 \
     epoll_wait epoll_wait_old eventfd eventfd2 fanotify_mark inotify_add_watch inotify_init \
     inotify_init1 inotify_rm_watch poll ppoll ppoll_time64 pselect6 pselect6_time64 select \
     signalfd signalfd4",
    // Memory.
    "brk madvise map_shadow_stack membarrier memfd_create memfd_secret mincore mlock mlock2 \
     mlockall mmap mmap2 mprotect mremap mseal msync munlock munlockall munmap pkey_alloc \
     pkey_free pkey_mprotect process_mrelease remap_file_pages",
    // Processes and threads.
    "execve execveat exit exit_group fork futex futex_requeue futex_time64 futex_wait futex_waitv \
     futex_wake get_robust_list get_thread_area getcpu getpgid getpgrp getpid getppid getpriority \
     getrlimit getrusage getsid gettid pause pidfd_open pidfd_send_signal prctl prlimit64 \
     restart_syscall rseq set_robust_list set_thread_area set_tid_address setpgid setpriority \
     setrlimit setsid sysinfo times ugetrlimit uname vfork wait4 waitid waitpid",
    // Users, groups, rights.
    "capget capset getegid getegid32 geteuid geteuid32 getgid getgid32 getgroups getgroups32 \
     getresgid getresgid32 getresuid getresuid32 getuid getuid32 landlock_add_rule \
     landlock_create_ruleset landlock_restrict_self seccomp setfsgid setfsgid32 setfsuid \
     setfsuid32 setgid setgid32 setgroups setgroups32 setregid setregid32 setresgid setresgid32 \
     setresuid setresuid32 setreuid setreuid32 setuid setuid32",
    // Signals.
    "kill rt_sigaction rt_sigpending rt_sigprocmask rt_sigqueueinfo rt_sigreturn rt_sigsuspend \
     rt_sigtimedwait rt_sigtimedwait_time64 rt_tgsigqueueinfo sigaltstack sigprocmask sigreturn \
     tgkill tkill",
    // Time.
    "adjtimex alarm clock_adjtime clock_adjtime64 clock_getres clock_getres_time64 clock_gettime \
     clock_gettime64 clock_nanosleep clock_nanosleep_time64 getitimer gettimeofday nanosleep \
     setitimer time timer_create timer_delete timer_getoverrun timer_gettime timer_gettime64 \
     timer_settime timer_settime64 timerfd_create timerfd_gettime timerfd_gettime64 \
     timerfd_settime timerfd_settime64",
    // Scheduling, asynchronous input and output, randomness.
    "getrandom io_cancel io_destroy io_getevents io_pgetevents io_pgetevents_time64 io_setup \
     io_submit ioprio_get ioprio_set sched_get_priority_max sched_get_priority_min \
     sched_getaffinity sched_getattr sched_getparam sched_getscheduler sched_rr_get_interval \
     sched_rr_get_interval_time64 sched_setaffinity sched_setattr sched_setparam \
     sched_setscheduler sched_yield",
    // Sockets and pipes.
    "accept accept4 bind connect getpeername getsockname getsockopt listen pipe pipe2 recv \
     recvfrom recvmmsg recvmmsg_time64 recvmsg send sendmmsg sendmsg sendto setsockopt shutdown \
     socketcall socketpair",
    // System V and POSIX message queues, semaphores, shared memory; tracing of
    // one's own processes, which is safe from Linux 4.8 on.
    "ipc mq_getsetattr mq_notify mq_open mq_timedreceive mq_timedreceive_time64 mq_timedsend \
     mq_timedsend_time64 mq_unlink msgctl msgget msgrcv msgsnd process_vm_readv \
     process_vm_writev ptrace semctl semget semop semtimedop semtimedop_time64 shmat shmctl \
     shmdt shmget",
];

/// System calls that come with a capability.
pub(super) const WITH_CAPABILITY: [(&str, &str); 14] = [
    ("CAP_DAC_READ_SEARCH", "open_by_handle_at"),
    (
        "CAP_SYS_ADMIN",
        "bpf clone clone3 fanotify_init fsconfig fsmount fsopen fspick listmount lookup_dcookie \
         lsm_get_self_attr lsm_list_modules lsm_set_self_attr mount mount_setattr move_mount \
         open_tree perf_event_open quotactl quotactl_fd setdomainname sethostname setns statmount \
         syslog umount umount2 unshare",
    ),
    ("CAP_SYS_BOOT", "reboot"),
    ("CAP_SYS_CHROOT", "chroot"),
    ("CAP_SYS_MODULE", "delete_module finit_module init_module"),
    ("CAP_SYS_PACCT", "acct"),
    ("CAP_SYS_PTRACE", "kcmp pidfd_getfd process_madvise"),
    ("CAP_SYS_RAWIO", "ioperm iopl"),
    (
        "CAP_SYS_TIME",
        "clock_settime clock_settime64 settimeofday stime",
    ),
    ("CAP_SYS_TTY_CONFIG", "vhangup"),
    (
        "CAP_SYS_NICE",
        "get_mempolicy mbind set_mempolicy set_mempolicy_home_node",
    ),
    ("CAP_SYSLOG", "syslog"),
    ("CAP_BPF", "bpf"),
    ("CAP_PERFMON", "perf_event_open"),
];

/// An architecture of this machine: its name in an OCI spec, those whose
/// programs it runs too, and the system calls it has of its own.
pub(super) struct Architecture {
    pub(super) names: &'static [&'static str],
    pub(super) calls: &'static str,
}

/// This machine's, where it is a known one.
pub(super) fn architecture() -> Option<Architecture> {
    match std::env::consts::ARCH {
        "x86_64" => Some(Architecture {
            names: &["SCMP_ARCH_X86_64", "SCMP_ARCH_X86", "SCMP_ARCH_X32"],
            calls: "arch_prctl modify_ldt",
        }),
        "aarch64" => Some(Architecture {
            names: &["SCMP_ARCH_AARCH64", "SCMP_ARCH_ARM"],
            calls: "arm_fadvise64_64 arm_sync_file_range breakpoint cacheflush set_tls \
                    sync_file_range2",
        }),
        _ => None,
    }
}

/// What personality(2) may be asked for: Linux, Linux with 3 GB less randomised,
/// the same with UNAME26, and "tell me".
pub(super) const PERSONALITIES: [u64; 5] = [0x0, 0x8, 0x2_0000, 0x2_0008, 0xffff_ffff];

/// Flags of clone(2) that make a namespace (CLONE_NEWNS, NEWCGROUP, NEWUTS,
/// NEWIPC, NEWUSER, NEWPID, NEWNET).
pub(super) const CLONE_NAMESPACES: u64 = 0x7e02_0000;

/// AF_VSOCK (socket(2)): it would reach the hypervisor past the network.
pub(super) const VSOCK: u64 = 40;
