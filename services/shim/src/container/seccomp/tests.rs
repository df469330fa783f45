use super::*;

const ALLOW: u32 = 0x7fff_0000;
const EPERM: u32 = ERRNO | libc::EPERM as u32;
const ENOSYS: u32 = ERRNO | libc::ENOSYS as u32;

fn compile(json: &str) -> Filter {
    Filter::compile(&serde_json::from_str(json).unwrap()).unwrap()
}

/// Runs a program as the kernel would, checking what the kernel checks.
fn run(filter: &Filter, arch: u32, number: u32, arguments: [u64; 6]) -> u32 {
    let mut data = [0_u32; 16];
    data[0] = number;
    data[1] = arch;
    for (index, argument) in arguments.iter().enumerate() {
        data[4 + 2 * index] = *argument as u32;
        data[5 + 2 * index] = (argument >> 32) as u32;
    }
    let mut accumulator = 0;
    let mut at = 0;
    loop {
        let instruction = filter.program[at];
        at += 1;
        let holds = match instruction.code {
            0x20 => {
                accumulator = data[instruction.k as usize / 4];
                continue;
            }
            0x54 => {
                accumulator &= instruction.k;
                continue;
            }
            0x05 => {
                at += instruction.k as usize;
                continue;
            }
            0x06 => return instruction.k,
            0x15 => accumulator == instruction.k,
            0x25 => accumulator > instruction.k,
            0x35 => accumulator >= instruction.k,
            other => panic!("unknown operation {other:#x}"),
        };
        at += usize::from(if holds {
            instruction.jt
        } else {
            instruction.jf
        });
    }
}

fn native(filter: &Filter, name: &str, arguments: [u64; 6]) -> u32 {
    let number = Calls::X86_64.number(name).unwrap();
    run(filter, AUDIT_X86_64, number, arguments)
}

#[test]
fn tables_are_sorted_for_the_search() {
    for table in [x86_64::X86_64, x86_64::X32, x86::X86, aarch64::AARCH64] {
        assert!(table.windows(2).all(|pair| pair[0].0 < pair[1].0));
    }
    assert_eq!(Calls::X86_64.number("execve"), Some(59));
    assert_eq!(Calls::X32.number("execve"), Some(520 | X32_BIT));
    assert_eq!(Calls::X86.number("execve"), Some(11));
    assert_eq!(Calls::Aarch64.number("execve"), Some(221));
}

#[test]
fn every_call_gets_what_the_profile_says() {
    let filter = compile(
        r#"{"defaultAction":"SCMP_ACT_ERRNO","architectures":["SCMP_ARCH_X86_64","SCMP_ARCH_X86"],
        "syscalls":[{"names":["read","write","exit","close_range"],"action":"SCMP_ACT_ALLOW"},
                    {"names":["clone3"],"action":"SCMP_ACT_ERRNO","errnoRet":38},
                    {"names":["no_such_call"],"action":"SCMP_ACT_ALLOW"},
                    {"names":["reboot"],"action":"SCMP_ACT_KILL_PROCESS"}]}"#,
    );
    let none = [0; 6];
    for (name, number) in x86_64::X86_64 {
        let expected = match *name {
            "read" | "write" | "exit" | "close_range" => ALLOW,
            "clone3" => ENOSYS,
            "reboot" => KILL_PROCESS,
            _ if *number > Calls::X86_64.number("close_range").unwrap() => ENOSYS,
            _ => EPERM,
        };
        assert_eq!(native(&filter, name, none), expected, "{name}");
    }
    assert_eq!(run(&filter, AUDIT_X86, 3, none), ALLOW, "x86 read");
    assert_eq!(run(&filter, AUDIT_X86, 11, none), EPERM, "x86 execve");
    assert_eq!(run(&filter, AUDIT_X86_64, X32_BIT, none), KILL_PROCESS);
    assert_eq!(run(&filter, AUDIT_AARCH64, 0, none), KILL_PROCESS);
}

/// An operator, and whether it holds for a value.
type Case = (&'static str, fn(u64) -> bool);

#[test]
fn conditions_compare_all_64_bits() {
    let big = 0x1_0000_0005_u64;
    let cases: [Case; 6] = [
        ("SCMP_CMP_EQ", |x| x == 0x1_0000_0005),
        ("SCMP_CMP_NE", |x| x != 0x1_0000_0005),
        ("SCMP_CMP_GT", |x| x > 0x1_0000_0005),
        ("SCMP_CMP_GE", |x| x >= 0x1_0000_0005),
        ("SCMP_CMP_LT", |x| x < 0x1_0000_0005),
        ("SCMP_CMP_LE", |x| x <= 0x1_0000_0005),
    ];
    for (operator, holds) in cases {
        let filter = compile(&format!(
            r#"{{"defaultAction":"SCMP_ACT_ERRNO","syscalls":[{{"names":["read"],"action":"SCMP_ACT_ALLOW",
            "args":[{{"index":1,"value":{big},"op":"{operator}"}},{{"index":2,"value":7,"op":"SCMP_CMP_EQ"}}]}}]}}"#
        ));
        for value in [0, 4, 5, 6, big - 1, big, big + 1, 0x2_0000_0000, u64::MAX] {
            let expected = if holds(value) { ALLOW } else { EPERM };
            let got = native(&filter, "read", [0, value, 7, 0, 0, 0]);
            assert_eq!(got, expected, "{value:#x} {operator} {big:#x}");
            assert_eq!(native(&filter, "read", [0, value, 8, 0, 0, 0]), EPERM);
        }
    }
}

#[test]
fn a_mask_is_applied_before_comparing() {
    let filter = compile(
        r#"{"defaultAction":"SCMP_ACT_ERRNO","syscalls":[{"names":["clone"],"action":"SCMP_ACT_ALLOW",
        "args":[{"index":0,"value":2114060288,"valueTwo":0,"op":"SCMP_CMP_MASKED_EQ"}]}]}"#,
    );
    assert_eq!(native(&filter, "clone", [0x11, 0, 0, 0, 0, 0]), ALLOW);
    let new_user = libc::CLONE_NEWUSER as u64;
    assert_eq!(native(&filter, "clone", [new_user, 0, 0, 0, 0, 0]), EPERM);
}

#[test]
fn two_conditions_on_one_argument_are_alternatives() {
    let filter = compile(
        r#"{"defaultAction":"SCMP_ACT_ERRNO","syscalls":[{"names":["personality"],"action":"SCMP_ACT_ALLOW",
        "args":[{"index":0,"value":0,"op":"SCMP_CMP_EQ"},{"index":0,"value":8,"op":"SCMP_CMP_EQ"}]}]}"#,
    );
    let personality = |value| native(&filter, "personality", [value, 0, 0, 0, 0, 0]);
    assert_eq!(
        (personality(0), personality(8), personality(9)),
        (ALLOW, ALLOW, EPERM)
    );
}

#[test]
fn a_profile_that_allows_by_default_denies_what_it_names() {
    let filter = compile(
        r#"{"defaultAction":"SCMP_ACT_ALLOW","syscalls":[{"names":["mkdir"],"action":"SCMP_ACT_ERRNO","errnoRet":13}]}"#,
    );
    assert_eq!(native(&filter, "mkdir", [0; 6]), ERRNO | 13);
    assert_eq!(native(&filter, "rmdir", [0; 6]), ALLOW);
    assert_eq!(native(&filter, "file_setattr", [0; 6]), ALLOW);
}

#[test]
fn notifying_needs_a_listener() {
    let profile = r#"{"defaultAction":"SCMP_ACT_ALLOW","syscalls":[{"names":["mkdir"],"action":"SCMP_ACT_NOTIFY"}]}"#;
    assert!(Filter::compile(&serde_json::from_str(profile).unwrap()).is_err());
}

/// A profile with so many answers that no jump reaches over a part of it: each call has its own error, and every third one
/// only for some arguments.
#[test]
fn every_call_gets_its_answer_however_far_away_that_is() {
    let names: Vec<&str> = x86_64::X86_64.iter().map(|(name, _)| *name).collect();
    let rules: Vec<String> = names
        .iter()
        .enumerate()
        .map(|(index, name)| {
            let arguments = if index % 3 == 0 {
                r#","args":[{"index":0,"value":4294967297,"op":"SCMP_CMP_GT"},{"index":1,"value":3,"op":"SCMP_CMP_LE"}]"#
            } else {
                ""
            };
            format!(
                r#"{{"names":["{name}"],"action":"SCMP_ACT_ERRNO","errnoRet":{}{arguments}}}"#,
                index + 1
            )
        })
        .collect();
    let filter = compile(&format!(
        r#"{{"defaultAction":"SCMP_ACT_ALLOW","architectures":["SCMP_ARCH_X86_64","SCMP_ARCH_X86","SCMP_ARCH_X32"],
        "syscalls":[{}]}}"#,
        rules.join(",")
    ));
    assert!(filter.program.len() > 4 * 256, "{}", filter.program.len());
    for (index, name) in names.iter().enumerate() {
        let error = ERRNO | (index as u32 + 1);
        let other = if index % 3 == 0 { ALLOW } else { error };
        for calls in [Calls::X86_64, Calls::X86, Calls::X32] {
            let Some(number) = calls.number(name) else {
                continue;
            };
            let answer =
                |first, second| run(&filter, calls.audit(), number, [first, second, 0, 0, 0, 0]);
            assert_eq!(answer(1 << 33, 3), error, "{name}");
            assert_eq!(answer(1 << 33, 4), other, "{name}");
            assert_eq!(answer(0x1_0000_0001, 3), other, "{name}");
            assert_eq!(answer(2, 3), other, "{name}");
        }
    }
    assert_eq!(run(&filter, AUDIT_X86_64, 100_000, [0; 6]), ALLOW);
    assert_eq!(run(&filter, AUDIT_AARCH64, 0, [0; 6]), KILL_PROCESS);
}

#[test]
fn calls_that_get_the_same_answer_share_it() {
    // Every second one is allowed: as many comparisons as there are changes, and the answers as often as jumps need them.
    let names: Vec<String> = x86_64::X86_64
        .iter()
        .filter(|(_, number)| number % 2 == 0)
        .map(|(name, _)| format!("\"{name}\""))
        .collect();
    let filter = compile(&format!(
        r#"{{"defaultAction":"SCMP_ACT_ERRNO","syscalls":[{{"names":[{}],"action":"SCMP_ACT_ALLOW"}}]}}"#,
        names.join(",")
    ));
    let answers = filter
        .program
        .iter()
        .filter(|instruction| instruction.code == 0x06)
        .count();
    assert!(answers <= 8, "{answers} of {}", filter.program.len());
}
