//! What `/proc/<pid>/cmdline` shows of the calling process.

use std::io;

/// Where the kernel put the arguments of this program when it was executed.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct CommandLine {
    start: usize,
    length: usize,
}

impl CommandLine {
    /// That of the calling process. A process that is cloned without sharing its memory has it in the same place.
    pub fn own() -> io::Result<Self> {
        let unexpected = || io::Error::from(io::ErrorKind::InvalidData);
        let stat = std::fs::read_to_string("/proc/self/stat")?;
        // The name, in parentheses, may hold anything. arg_start and arg_end are fields 48 and 49 of proc_pid_stat(5).
        let (_, fields) = stat.rsplit_once(')').ok_or_else(unexpected)?;
        let mut fields = fields.split_whitespace().skip(45);
        let mut address = || fields.next().and_then(|field| field.parse::<usize>().ok());
        let (start, end) = address().zip(address()).ok_or_else(unexpected)?;
        match end.checked_sub(start) {
            Some(length) if start > 0 && length > 0 => Ok(Self { start, length }),
            _ => Err(unexpected()),
        }
    }

    /// Shows `words` from here on, as many bytes of them as there is room for, and zeros behind
    /// them. As in [`crate::clone::clone`] the process must have one thread: another might be reading its
    /// arguments.
    pub fn replace<'a>(self, words: impl IntoIterator<Item = &'a [u8]>) -> io::Result<()> {
        if crate::clone::thread_count()? != 1 {
            return Err(io::Error::from_raw_os_error(libc::EDEADLK));
        }
        let mut shown: Vec<u8> = words
            .into_iter()
            .flat_map(|word| word.iter().copied().chain([0]))
            .take(self.length)
            .collect();
        shown.resize(self.length, 0);
        if let Some(last) = shown.last_mut() {
            *last = 0;
        }
        // SAFETY: the area is the one in which the kernel has put this program's arguments, on the stack's bottom, which
        // stays mapped and writable for as long as the process lives and in which nothing else is kept. Its last byte
        // stays zero, so that a string in it still ends in it. No other thread is there to read it meanwhile.
        unsafe {
            std::ptr::copy_nonoverlapping(
                shown.as_ptr(),
                std::ptr::with_exposed_provenance_mut::<u8>(self.start),
                self.length,
            );
        }
        Ok(())
    }
}
