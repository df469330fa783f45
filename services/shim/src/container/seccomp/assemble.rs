//! From intervals of calls to instructions.
//!
//! The program is put together from its end to its beginning, so that all that a jump leads to is there when the jump is made,
//! and its distance known. An answer is one instruction, which all who give it share as far as their jumps reach: a tree
//! over the calls then has one instruction for each comparison and next to none for the answers.
//!
//! ```text
//! architecture?  ──►  number below 0x4000_0000?  ──►  tree of numbers  ──►  conditions on arguments  ──►  answers
//! ```

use std::collections::BTreeMap;

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

/// How many instructions a conditional jump can pass over. The unconditional one reaches all.
const REACH: usize = 255;

fn plain(code: u16, k: u32) -> Instruction {
    Instruction {
        code,
        jt: 0,
        jf: 0,
        k,
    }
}

/// Where a decision leads.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Target {
    Answer(u32),
    /// The instruction that has so many behind it.
    Code(usize),
}

/// A program, its last instruction first.
#[derive(Debug, Default)]
struct Assembly {
    out: Vec<Instruction>,
    /// Where each answer is given that has been given, nearest to the beginning.
    answers: BTreeMap<u32, usize>,
}

impl Assembly {
    /// Puts an instruction before all others.
    fn put(&mut self, instruction: Instruction) -> usize {
        self.out.push(instruction);
        self.out.len() - 1
    }

    /// How far a jump would go that is put next.
    fn distance(&self, to: usize) -> usize {
        self.out.len() - to - 1
    }

    /// A place that a conditional jump can reach, and still reaches when `more` instructions have been put in between.
    fn reachable(&mut self, target: Target, more: usize) -> usize {
        let reaches = |assembly: &Self, at: usize| assembly.distance(at) + more <= REACH;
        match target {
            Target::Answer(action) => match self.answers.get(&action) {
                Some(at) if reaches(self, *at) => *at,
                _ => {
                    let at = self.put(plain(RETURN, action));
                    self.answers.insert(action, at);
                    at
                }
            },
            Target::Code(at) if reaches(self, at) => at,
            Target::Code(at) => self.put(plain(JUMP, self.distance(at) as u32)),
        }
    }

    /// A comparison with what is loaded. What is put next and does not jump leads to it.
    fn branch(&mut self, code: u16, k: u32, yes: Target, no: Target) -> Target {
        if yes == no {
            return yes;
        }
        // The second may need an instruction of its own.
        let yes = self.reachable(yes, 1);
        let no = self.reachable(no, 0);
        let (jt, jf) = (self.distance(yes) as u8, self.distance(no) as u8);
        Target::Code(self.put(Instruction { code, jt, jf, k }))
    }

    /// Loads a word for what was put last. A decision that looks at nothing needs none.
    fn load(&mut self, offset: u32, then: Target) -> Target {
        match then {
            Target::Code(at) if self.distance(at) == 0 => {
                Target::Code(self.put(plain(LOAD, offset)))
            }
            decided => decided,
        }
    }

    /// A binary tree over the spans, for the number that is loaded.
    fn tree(&mut self, spans: &[Span]) -> Target {
        match spans {
            [] => Target::Answer(0),
            [one] => self.rules(&one.rules),
            _ => {
                let (below, above) = spans.split_at(spans.len() / 2);
                let limit = above.first().map_or(0, |span| span.first);
                let above = self.tree(above);
                let below = self.tree(below);
                self.branch(JUMP_GREATER_EQUAL, limit, above, below)
            }
        }
    }

    /// The rules of one call, one after the other. The last one has no conditions.
    fn rules(&mut self, rules: &[Rule]) -> Target {
        rules.iter().rev().fold(Target::Answer(0), |next, rule| {
            let action = Target::Answer(rule.action);
            rule.conditions
                .iter()
                .rev()
                .fold(action, |holds, condition| self.test(condition, holds, next))
        })
    }

    /// Arguments have 64 bits, registers 32: the upper half is looked at first, and often decides.
    fn test(&mut self, condition: &LinuxSeccompArg, yes: Target, no: Target) -> Target {
        if yes == no {
            return yes;
        }
        let offset = ARGUMENTS + 8 * condition.index() as u32;
        let (low_at, high_at) = if cfg!(target_endian = "little") {
            (offset, offset + 4)
        } else {
            (offset + 4, offset)
        };
        let (low, high) = halves(condition.value());
        let wanted = halves(condition.value_two().unwrap_or(0));
        // How lower halves are compared, where it leads if that holds and if not; and a greater or a less upper half.
        let (code, holds, fails, greater, less) = match condition.op() {
            LinuxSeccompOperator::ScmpCmpMaskedEq => {
                // `value` is the mask, `valueTwo` what must be left.
                let lower = self.masked(low_at, low, wanted.0, yes, no);
                return self.masked(high_at, high, wanted.1, lower, no);
            }
            LinuxSeccompOperator::ScmpCmpEq => (JUMP_EQUAL, yes, no, no, no),
            LinuxSeccompOperator::ScmpCmpNe => (JUMP_EQUAL, no, yes, yes, yes),
            LinuxSeccompOperator::ScmpCmpGt => (JUMP_GREATER, yes, no, yes, no),
            LinuxSeccompOperator::ScmpCmpGe => (JUMP_GREATER_EQUAL, yes, no, yes, no),
            LinuxSeccompOperator::ScmpCmpLe => (JUMP_GREATER, no, yes, no, yes),
            LinuxSeccompOperator::ScmpCmpLt => (JUMP_GREATER_EQUAL, no, yes, no, yes),
        };
        let lower = self.branch(code, low, holds, fails);
        let lower = self.load(low_at, lower);
        let mut upper = self.branch(JUMP_EQUAL, high, lower, less);
        if greater != less {
            upper = self.branch(JUMP_GREATER, high, greater, upper);
        }
        self.load(high_at, upper)
    }

    /// Whether the bits of the mask have the value that is wanted.
    fn masked(&mut self, at: u32, mask: u32, wanted: u32, yes: Target, no: Target) -> Target {
        if mask == 0 {
            return if wanted == 0 { yes } else { no };
        }
        if yes == no {
            return yes;
        }
        self.branch(JUMP_EQUAL, wanted, yes, no);
        let masked = Target::Code(self.put(plain(AND, mask)));
        self.load(at, masked)
    }
}

fn halves(value: u64) -> (u32, u32) {
    (value as u32, (value >> 32) as u32)
}

/// The whole program. `stranger`: what happens to calls of an architecture that has no part.
pub(super) fn program(parts: &[Part], stranger: u32) -> Vec<Instruction> {
    let mut assembly = Assembly::default();
    let mut audits: Vec<u32> = Vec::new();
    for part in parts {
        if !audits.contains(&part.audit) {
            audits.push(part.audit);
        }
    }
    let mut first = Target::Answer(stranger);
    let mut bodies = Vec::new();
    for audit in audits {
        let mut own = |x32| {
            parts
                .iter()
                .find(|part| part.audit == audit && part.x32 == x32)
                .map_or(Target::Answer(stranger), |part| assembly.tree(&part.spans))
        };
        let body = if audit == super::AUDIT_X86_64 {
            let (x32, normal) = (own(true), own(false));
            assembly.branch(JUMP_GREATER_EQUAL, X32_BIT, x32, normal)
        } else {
            own(false)
        };
        bodies.push((audit, assembly.load(NUMBER, body)));
    }
    for (audit, body) in bodies.into_iter().rev() {
        first = assembly.branch(JUMP_EQUAL, audit, body, first);
    }
    if let Target::Answer(action) = assembly.load(ARCHITECTURE, first) {
        assembly.put(plain(RETURN, action));
    }
    assembly.out.reverse();
    assembly.out
}
