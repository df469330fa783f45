//! Changes archives so that most of them stay archives: a header that was changed
//! gets the checksum that fits, or hardly any would pass the first look.

const BLOCK: usize = 512;
/// Where a header has its checksum, and the mark of its format.
const CHECKSUM: std::ops::Range<usize> = 148..156;
const MAGIC: std::ops::Range<usize> = 257..262;

pub(crate) fn mutate(data: &mut [u8], size: usize, max_size: usize, seed: u32) -> usize {
    let size = libfuzzer_sys::fuzzer_mutate(data, size, max_size);
    // Now and then a wrong one is what is wanted.
    if seed % 16 != 0 {
        for block in data[..size].chunks_exact_mut(BLOCK) {
            if &block[MAGIC] == b"ustar" {
                set_checksum(block);
            }
        }
    }
    size
}

fn set_checksum(block: &mut [u8]) {
    block[CHECKSUM].fill(b' ');
    let sum: u32 = block.iter().map(|&byte| u32::from(byte)).sum();
    let field = format!("{sum:06o}\0 ");
    block[CHECKSUM].copy_from_slice(field.as_bytes());
}
