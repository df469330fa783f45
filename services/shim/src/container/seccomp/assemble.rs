//! From intervals of calls to instructions.

use gantry_sys::seccomp::Instruction;
use oci_spec::runtime::{LinuxSeccompArg, LinuxSeccompOperator};

/// What happens to a call if all conditions hold.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(super) struct Rule {
    conditions: Vec<LinuxSeccompArg>,
    pub(super) action: u32,
}

impl Rule {
    pub(super) fn always(action: u32) -> Self {
        Self::when(Vec::new(), action)
    }

    pub(super) fn when(conditions: Vec<LinuxSeccompArg>, action: u32) -> Self {
        Self { conditions, action }
    }

    pub(super) fn is_unconditional(&self) -> bool {
        self.conditions.is_empty()
    }
}

/// Calls from `first` up to the next span. The last rule is unconditional.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(super) struct Span {
    pub(super) first: u32,
    pub(super) rules: Vec<Rule>,
}

/// One architecture's calls.
#[derive(Debug)]
pub(super) struct Part {
    pub(super) audit: u32,
    /// Whether these are the calls with the x32 bit of that architecture.
    pub(super) x32: bool,
    pub(super) spans: Vec<Span>,
}

// Operations of classic BPF.
const LOAD: u16 = 0x20;
const JUMP: u16 = 0x05;
const JUMP_EQUAL: u16 = 0x15;
const JUMP_GREATER: u16 = 0x25;
const JUMP_GREATER_EQUAL: u16 = 0x35;
const AND: u16 = 0x54;
const RETURN: u16 = 0x06;

// Offsets in struct seccomp_data.
const NUMBER: u32 = 0;
const ARCHITECTURE: u32 = 4;
const ARGUMENTS: u32 = 16;

const X32_BIT: u32 = 0x4000_0000;

fn plain(code: u16, k: u32) -> Instruction {
    Instruction {
        code,
        jt: 0,
        jf: 0,
        k,
    }
}

fn branch(code: u16, k: u32, jt: u8, jf: u8) -> Instruction {
    Instruction { code, jt, jf, k }
}

/// The whole program. `stranger`: what happens to calls of an architecture that has no part.
pub(super) fn program(parts: &[Part], stranger: u32) -> Vec<Instruction> {
    let mut out = vec![plain(LOAD, ARCHITECTURE)];
    let mut audits: Vec<u32> = Vec::new();
    for part in parts {
        if !audits.contains(&part.audit) {
            audits.push(part.audit);
        }
    }
    for audit in audits {
        let own = |x32| {
            parts
                .iter()
                .find(|part| part.audit == audit && part.x32 == x32)
                .map(|part| tree(&part.spans))
        };
        let missing = || vec![plain(RETURN, stranger)];
        let mut body = vec![plain(LOAD, NUMBER)];
        let normal = own(false).unwrap_or_else(missing);
        if audit == super::AUDIT_X86_64 {
            let x32 = own(true).unwrap_or_else(missing);
            fork(&mut body, X32_BIT, normal, x32);
        } else {
            body.extend(normal);
        }
        // Not this architecture: behind the body.
        out.push(branch(JUMP_EQUAL, audit, 1, 0));
        out.push(plain(JUMP, body.len() as u32));
        out.append(&mut body);
    }
    out.push(plain(RETURN, stranger));
    out
}

/// If the number is at least `limit` then `above`, else `below`.
fn fork(out: &mut Vec<Instruction>, limit: u32, below: Vec<Instruction>, above: Vec<Instruction>) {
    match u8::try_from(below.len()) {
        Ok(distance) => out.push(branch(JUMP_GREATER_EQUAL, limit, distance, 0)),
        // Conditional jumps reach 255 instructions; the unconditional one reaches all.
        Err(_) => {
            out.push(branch(JUMP_GREATER_EQUAL, limit, 0, 1));
            out.push(plain(JUMP, below.len() as u32));
        }
    }
    out.extend(below);
    out.extend(above);
}

/// A binary tree over the spans.
fn tree(spans: &[Span]) -> Vec<Instruction> {
    match spans {
        [] => Vec::new(),
        [one] => leaf(&one.rules),
        _ => {
            let (below, above) = spans.split_at(spans.len() / 2);
            let mut out = Vec::new();
            let limit = above.first().map_or(0, |span| span.first);
            fork(&mut out, limit, tree(below), tree(above));
            out
        }
    }
}

/// The rules of one call, one after the other.
fn leaf(rules: &[Rule]) -> Vec<Instruction> {
    let mut out = Vec::new();
    for rule in rules {
        // From the last condition to the first: each knows how far it is to the end.
        let mut body = vec![plain(RETURN, rule.action)];
        for condition in rule.conditions.iter().rev() {
            let mut test = condition_test(condition, body.len() as u8);
            test.append(&mut body);
            body = test;
        }
        out.append(&mut body);
    }
    out
}

/// Goes on if the condition holds; else jumps over what follows, which is `rest` instructions.
///
/// Arguments have 64 bits, registers 32: the upper half is looked at first.
fn condition_test(condition: &LinuxSeccompArg, rest: u8) -> Vec<Instruction> {
    let offset = ARGUMENTS + 8 * condition.index() as u32;
    let (low_at, high_at) = if cfg!(target_endian = "little") {
        (offset, offset + 4)
    } else {
        (offset + 4, offset)
    };
    let halves = |value: u64| (value as u32, (value >> 32) as u32);
    let (low, high) = halves(condition.value());
    // For comparisons: upper half decides, or if it is equal the lower one.
    let compare = |code: u16, holds_if_true: bool| {
        let (above, below) = if holds_if_true {
            // load, above?, equal?, load, compare
            (3, 2 + rest)
        } else {
            (3 + rest, 2)
        };
        let (yes, no) = if holds_if_true { (0, rest) } else { (rest, 0) };
        vec![
            plain(LOAD, high_at),
            branch(JUMP_GREATER, high, above, 0),
            branch(JUMP_EQUAL, high, 0, below),
            plain(LOAD, low_at),
            branch(code, low, yes, no),
        ]
    };
    match condition.op() {
        LinuxSeccompOperator::ScmpCmpEq => vec![
            plain(LOAD, high_at),
            branch(JUMP_EQUAL, high, 0, 2 + rest),
            plain(LOAD, low_at),
            branch(JUMP_EQUAL, low, 0, rest),
        ],
        LinuxSeccompOperator::ScmpCmpNe => vec![
            plain(LOAD, high_at),
            branch(JUMP_EQUAL, high, 0, 2),
            plain(LOAD, low_at),
            branch(JUMP_EQUAL, low, rest, 0),
        ],
        LinuxSeccompOperator::ScmpCmpMaskedEq => {
            // `value` is the mask, `valueTwo` what must be left.
            let (wanted_low, wanted_high) = halves(condition.value_two().unwrap_or(0));
            vec![
                plain(LOAD, high_at),
                plain(AND, high),
                branch(JUMP_EQUAL, wanted_high, 0, 3 + rest),
                plain(LOAD, low_at),
                plain(AND, low),
                branch(JUMP_EQUAL, wanted_low, 0, rest),
            ]
        }
        LinuxSeccompOperator::ScmpCmpGt => compare(JUMP_GREATER, true),
        LinuxSeccompOperator::ScmpCmpGe => compare(JUMP_GREATER_EQUAL, true),
        LinuxSeccompOperator::ScmpCmpLe => compare(JUMP_GREATER, false),
        LinuxSeccompOperator::ScmpCmpLt => compare(JUMP_GREATER_EQUAL, false),
    }
}
