//! Finding where reading begins, without reading all before it.

use super::entry::{Parser, lines};
use super::segment::Segment;
use super::{Result, Wanted};

/// Enough to hold one whole entry, wherever in it one begins.
const PROBE_BYTES: usize = 40 << 10;

/// Read at once when counting backwards.
const BACK_BYTES: u64 = 512 << 10;

/// Drops the segments that end before `since`, and moves the first one left to
/// its first entry that is not before it. Supposes that times do not go back.
pub(super) fn since(segments: &mut Vec<Segment>, since: u64) -> Result<()> {
    let mut parser = Parser::default();
    // The wanted entry is in the last segment that begins before it, or at the
    // beginning of the next.
    let mut low = 0;
    let mut high = segments.len();
    while low < high {
        let middle = low + (high - low) / 2;
        let first = first_after(&segments[middle], 0, &mut parser)?;
        if first.is_some_and(|(_, time)| time < since) {
            low = middle + 1;
        } else {
            high = middle;
        }
    }
    segments.drain(..low.saturating_sub(1));
    if let Some(segment) = segments.first_mut() {
        segment.offset = bisect(segment, since, &mut parser)?;
    }
    Ok(())
}

/// Offset of the segment's first entry that is not before `since`; a few
/// entries earlier costs nothing, since reading filters.
fn bisect(segment: &Segment, since: u64, parser: &mut Parser) -> Result<u64> {
    let (mut low, mut high) = (0, segment.length()?);
    while high - low > PROBE_BYTES as u64 {
        let middle = low + (high - low) / 2;
        match first_after(segment, middle, parser)? {
            Some((begin, time)) if time < since => low = begin,
            _ => high = middle,
        }
    }
    Ok(low)
}

/// Offset and time of the first entry that begins at or after `offset`; in the
/// middle of an entry, of the next one.
fn first_after(segment: &Segment, offset: u64, parser: &mut Parser) -> Result<Option<(u64, u64)>> {
    // One byte earlier, so that an entry that begins exactly here is seen.
    let begin = offset.saturating_sub(1);
    let probe = segment.at(begin, PROBE_BYTES)?;
    for line in lines(&probe) {
        if offset > 0 && line.start == 0 {
            continue;
        }
        if let Some(head) = parser.head(&probe[line.clone()]) {
            return Ok(Some((begin + line.start as u64, head.time)));
        }
    }
    Ok(None)
}

/// Moves to where the last `count` lines begin.
pub(super) fn tail(segments: &mut Vec<Segment>, count: u64, wanted: &Wanted) -> Result<()> {
    let mut parser = Parser::default();
    let mut counted = Counted { lines: 0, count };
    for index in (0..segments.len()).rev() {
        let segment = &segments[index];
        if let Some(offset) = tail_of(segment, wanted, &mut parser, &mut counted)? {
            segments.drain(..index);
            segments[0].offset = offset;
            return Ok(());
        }
    }
    Ok(())
}

struct Counted {
    lines: u64,
    count: u64,
}

/// Where, in this segment, the wanted lines begin; `None`: before it.
fn tail_of(
    segment: &Segment,
    wanted: &Wanted,
    parser: &mut Parser,
    counted: &mut Counted,
) -> Result<Option<u64>> {
    let first = segment.offset;
    let mut end = segment.length()?;
    // The beginning of a line whose end is in the block after.
    let mut rest: Vec<u8> = Vec::new();
    let mut newest = true;
    while end > first {
        let begin = end.saturating_sub(BACK_BYTES).max(first);
        let length = usize::try_from(end - begin).unwrap_or(usize::MAX);
        let mut block = segment.at(begin, length)?;
        block.append(&mut rest);
        let mut all: Vec<_> = lines(&block).collect();
        if begin > first && !all.is_empty() {
            // Its beginning is in the block before.
            let head = all.remove(0);
            rest = block[head].to_vec();
        } else if begin > first {
            rest = block;
            end = begin;
            continue;
        }
        for line in all.into_iter().rev() {
            let Some(head) = parser.head(&block[line.clone()]) else {
                continue;
            };
            if !wanted.stream(head.stream) || head.time >= wanted.until {
                continue;
            }
            if head.time < wanted.since {
                return Ok(Some(begin + line.end as u64));
            }
            // An unfinished line at the very end counts as one.
            let ends_line = head.full || newest;
            newest = false;
            if ends_line {
                if counted.lines == counted.count {
                    return Ok(Some(begin + line.end as u64));
                }
                counted.lines += 1;
            }
        }
        end = begin;
    }
    Ok(None)
}
