//! Which devices may be opened or made: `devices.allow` and `.deny` in v1, a program in v2.
//!
//! The rules are the spec's, in their order, after "deny all" and before the devices every container may use; the last
//! rule that matches decides.

use std::os::fd::{AsFd, OwnedFd};

use gantry_sys::bpf::{self, Instruction};
use oci_spec::runtime::{LinuxDeviceCgroup, LinuxDeviceType, LinuxResources};

use super::{Cgroup, write};
use crate::container::context::During;
use crate::container::error::{Error, Result};

const MKNOD: u8 = 1;
const READ: u8 = 2;
const WRITE: u8 = 4;
const ALL: u8 = MKNOD | READ | WRITE;

/// One rule; `None` is any.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
struct Rule {
    allow: bool,
    /// `b'b'`, `b'c'` or `b'a'`.
    kind: u8,
    major: Option<u32>,
    minor: Option<u32>,
    access: u8,
}

const fn allow(kind: u8, major: Option<u32>, minor: Option<u32>, access: u8) -> Rule {
    Rule {
        allow: true,
        kind,
        major,
        minor,
        access,
    }
}

/// What every container may: make any device file (using it is another matter), and use the harmless ones.
const ALWAYS: [Rule; 11] = [
    allow(b'c', None, None, MKNOD),
    allow(b'b', None, None, MKNOD),
    allow(b'c', Some(1), Some(3), ALL),
    allow(b'c', Some(1), Some(5), ALL),
    allow(b'c', Some(1), Some(7), ALL),
    allow(b'c', Some(1), Some(8), ALL),
    allow(b'c', Some(1), Some(9), ALL),
    allow(b'c', Some(5), Some(0), ALL),
    allow(b'c', Some(5), Some(1), ALL),
    allow(b'c', Some(5), Some(2), ALL),
    allow(b'c', Some(136), None, ALL),
];

impl Rule {
    fn parse(rule: &LinuxDeviceCgroup, index: usize) -> Result<Self> {
        let field = |name: &str| format!("linux.resources.devices[{index}].{name}");
        let number = |value: Option<i64>, name: &str| match value {
            None | Some(-1) => Ok(None),
            Some(value) => u32::try_from(value)
                .map(Some)
                .map_err(|_| Error::invalid(field(name), format!("{value} is no device number"))),
        };
        let kind = match rule.typ() {
            None | Some(LinuxDeviceType::A) => b'a',
            Some(LinuxDeviceType::B) => b'b',
            Some(LinuxDeviceType::C | LinuxDeviceType::U) => b'c',
            Some(LinuxDeviceType::P) => {
                return Err(Error::invalid(
                    field("type"),
                    "\"p\" has no rule; a, b or c",
                ));
            }
        };
        let mut access = 0;
        for letter in rule.access().as_deref().unwrap_or("rwm").chars() {
            access |= match letter {
                'r' => READ,
                'w' => WRITE,
                'm' => MKNOD,
                other => {
                    return Err(Error::invalid(
                        field("access"),
                        format!("{other:?} is not one of r, w, m"),
                    ));
                }
            };
        }
        Ok(Self {
            allow: rule.allow(),
            kind,
            major: number(rule.major(), "major")?,
            minor: number(rule.minor(), "minor")?,
            access,
        })
    }

    fn is_everything(self) -> bool {
        self.kind == b'a' && self.major.is_none() && self.minor.is_none() && self.access == ALL
    }

    /// As the v1 files want it.
    fn text(self) -> String {
        let number = |value: Option<u32>| value.map_or("*".to_owned(), |value| value.to_string());
        let mut access = String::new();
        for (bit, letter) in [(READ, 'r'), (WRITE, 'w'), (MKNOD, 'm')] {
            if self.access & bit != 0 {
                access.push(letter);
            }
        }
        format!(
            "{} {}:{} {access}",
            char::from(self.kind),
            number(self.major),
            number(self.minor)
        )
    }
}

/// All rules. What comes before one that is about everything does not count.
fn rules(resources: Option<&LinuxResources>) -> Result<Vec<Rule>> {
    let wanted = resources.and_then(|resources| resources.devices().as_ref());
    let mut rules = vec![Rule {
        allow: false,
        kind: b'a',
        major: None,
        minor: None,
        access: ALL,
    }];
    for (index, rule) in wanted.into_iter().flatten().enumerate() {
        let rule = Rule::parse(rule, index)?;
        if rule.is_everything() {
            rules.clear();
        }
        rules.push(rule);
    }
    rules.extend(ALWAYS);
    Ok(rules)
}

impl Cgroup {
    /// Sets the rules, in place of what was set before.
    pub(in crate::container) fn allow_devices(
        &self,
        resources: Option<&LinuxResources>,
    ) -> Result<()> {
        let rules = rules(resources)?;
        if !self.layout.is_v2() {
            return self.allow_devices_v1(&rules);
        }
        let Some(directory) = self.unified_directory() else {
            return Ok(());
        };
        let group: OwnedFd = std::fs::File::open(&directory)
            .during("open cgroup", directory.display())?
            .into();
        let before = bpf::device_programs(group.as_fd())
            .during("list device programs", directory.display())?;
        let program = bpf::load_device_program(&program(&rules))
            .during("load device program", directory.display())?;
        bpf::attach_device_program(group.as_fd(), program.as_fd())
            .during("attach device program", directory.display())?;
        for old in before {
            bpf::detach_device_program(group.as_fd(), old.as_fd())
                .during("detach device program", directory.display())?;
        }
        Ok(())
    }

    fn allow_devices_v1(&self, rules: &[Rule]) -> Result<()> {
        let Some(directory) = self.v1_directory("devices") else {
            return Ok(());
        };
        let open_to_all = rules.first().is_some_and(|rule| rule.allow);
        for (index, rule) in rules.iter().enumerate() {
            // Where everything is allowed, a further permission says nothing.
            if index > 0 && open_to_all && rule.allow {
                continue;
            }
            let file = directory.join(if rule.allow {
                "devices.allow"
            } else {
                "devices.deny"
            });
            write(&file, &rule.text()).during(
                "set device rule",
                format_args!("{}: {}", file.display(), rule.text()),
            )?;
        }
        Ok(())
    }
}

// Registers and operations of extended BPF, as far as they are used here.
const LOAD_WORD: u8 = 0x61;
const MOVE_REGISTER: u8 = 0xbf;
const MOVE_VALUE: u8 = 0xb7;
const AND_VALUE: u8 = 0x57;
const SHIFT_RIGHT_VALUE: u8 = 0x77;
const JUMP_NOT_EQUAL: u8 = 0x55;
const JUMP_NOT_EQUAL_REGISTER: u8 = 0x5d;
const EXIT: u8 = 0x95;

fn instruction(code: u8, to: u8, from: u8, offset: i16, immediate: i32) -> Instruction {
    Instruction {
        code,
        registers: from << 4 | to,
        offset,
        immediate,
    }
}

/// The rules as a program: from the last to the first, the first that matches answers.
///
/// The context is `{ u32 access_type (access << 16 | kind), u32 major, u32 minor }`, kind 1 block, 2 character.
fn program(rules: &[Rule]) -> Vec<Instruction> {
    let mut out = vec![
        // r2: kind, r3: access, r4: major, r5: minor
        instruction(LOAD_WORD, 2, 1, 0, 0),
        instruction(MOVE_REGISTER, 3, 2, 0, 0),
        instruction(SHIFT_RIGHT_VALUE, 3, 0, 0, 16),
        instruction(AND_VALUE, 2, 0, 0, 0xffff),
        instruction(LOAD_WORD, 4, 1, 4, 0),
        instruction(LOAD_WORD, 5, 1, 8, 0),
    ];
    for rule in rules.iter().rev() {
        let mut test = Vec::with_capacity(8);
        match rule.kind {
            b'b' => test.push(instruction(JUMP_NOT_EQUAL, 2, 0, 0, 1)),
            b'c' => test.push(instruction(JUMP_NOT_EQUAL, 2, 0, 0, 2)),
            _ => {}
        }
        if rule.access != ALL {
            // An allowing rule must cover all that is asked for; a denying one is hit by any of it.
            test.push(instruction(MOVE_REGISTER, 6, 3, 0, 0));
            test.push(instruction(AND_VALUE, 6, 0, 0, i32::from(rule.access)));
            if rule.allow {
                test.push(instruction(JUMP_NOT_EQUAL_REGISTER, 6, 3, 0, 0));
            } else {
                // r6 == 0: no match. Jump if not equal to 0 over an unconditional "next".
                test.push(instruction(JUMP_NOT_EQUAL, 6, 0, 1, 0));
                test.push(instruction(0x05, 0, 0, 0, 0));
            }
        }
        if let Some(major) = rule.major {
            test.push(instruction(JUMP_NOT_EQUAL, 4, 0, 0, major as i32));
        }
        if let Some(minor) = rule.minor {
            test.push(instruction(JUMP_NOT_EQUAL, 5, 0, 0, minor as i32));
        }
        // Every jump that was left at 0 goes to the next rule, behind the two instructions that answer.
        let length = test.len();
        for (index, instruction) in test.iter_mut().enumerate() {
            let jumps = matches!(
                instruction.code,
                JUMP_NOT_EQUAL | JUMP_NOT_EQUAL_REGISTER | 0x05
            );
            if jumps && instruction.offset == 0 {
                instruction.offset = (length - index - 1 + 2) as i16;
            }
        }
        out.append(&mut test);
        out.push(instruction(MOVE_VALUE, 0, 0, 0, i32::from(rule.allow)));
        out.push(instruction(EXIT, 0, 0, 0, 0));
        if length == 0 {
            // This one matches everything: what would follow can not be reached, which the verifier refuses.
            return out;
        }
    }
    out.push(instruction(MOVE_VALUE, 0, 0, 0, 0));
    out.push(instruction(EXIT, 0, 0, 0, 0));
    out
}

#[cfg(test)]
mod tests {
    use super::*;

    fn of(json: &str) -> Vec<Rule> {
        rules(Some(&serde_json::from_str(json).unwrap())).unwrap()
    }

    /// Runs a program as the kernel would.
    fn run(program: &[Instruction], kind: u64, access: u64, major: u64, minor: u64) -> u64 {
        let context = [access << 16 | kind, major, minor];
        let mut registers = [0_u64; 11];
        let mut at = 0;
        loop {
            let instruction = program[at];
            let to = usize::from(instruction.registers & 15);
            let from = usize::from(instruction.registers >> 4);
            let value = instruction.immediate as u64;
            at += 1;
            let jump = match instruction.code {
                LOAD_WORD => {
                    registers[to] = context[(instruction.offset / 4) as usize];
                    false
                }
                MOVE_REGISTER => {
                    registers[to] = registers[from];
                    false
                }
                MOVE_VALUE => {
                    registers[to] = value;
                    false
                }
                AND_VALUE => {
                    registers[to] &= value;
                    false
                }
                SHIFT_RIGHT_VALUE => {
                    registers[to] >>= value;
                    false
                }
                JUMP_NOT_EQUAL => registers[to] != value,
                JUMP_NOT_EQUAL_REGISTER => registers[to] != registers[from],
                0x05 => true,
                EXIT => return registers[0],
                other => panic!("unknown operation {other:#x}"),
            };
            if jump {
                at = at
                    .checked_add_signed(isize::from(instruction.offset))
                    .unwrap();
            }
        }
    }

    const CHARACTER: u64 = 2;
    const BLOCK: u64 = 1;

    #[test]
    fn by_default_only_the_harmless_devices_may_be_used() {
        let program = program(&of(r#"{"devices":[{"allow":false,"access":"rwm"}]}"#));
        assert_eq!(run(&program, CHARACTER, 2, 1, 3), 1, "read /dev/null");
        assert_eq!(run(&program, CHARACTER, 6, 136, 9), 1, "use a terminal");
        assert_eq!(run(&program, BLOCK, 1, 8, 0), 1, "make a disk's file");
        assert_eq!(run(&program, BLOCK, 2, 8, 0), 0, "read a disk");
        assert_eq!(run(&program, BLOCK, 3, 8, 0), 0, "make and read at once");
        assert_eq!(run(&program, CHARACTER, 2, 1, 1), 0, "read /dev/mem");
    }

    #[test]
    fn the_last_rule_that_matches_decides() {
        let program = program(&of(
            r#"{"devices":[{"allow":true,"type":"b","major":8,"access":"rw"},{"allow":false,"type":"b","major":8,"minor":1,"access":"w"}]}"#,
        ));
        assert_eq!(run(&program, BLOCK, 6, 8, 0), 1);
        assert_eq!(run(&program, BLOCK, 2, 8, 1), 1);
        assert_eq!(run(&program, BLOCK, 6, 8, 1), 0);
    }

    #[test]
    fn allowing_everything_allows_everything() {
        let rules = of(r#"{"devices":[{"allow":true,"access":"rwm"}]}"#);
        let program = program(&rules);
        assert_eq!(run(&program, BLOCK, 6, 8, 0), 1);
        assert_eq!(rules[0].text(), "a *:* rwm");
    }

    #[test]
    fn the_kernels_verifier_takes_the_programs() {
        for json in [
            r#"{"devices":[{"allow":false,"access":"rwm"}]}"#,
            r#"{"devices":[{"allow":true,"access":"rwm"}]}"#,
            r#"{"devices":[{"allow":false,"type":"c","major":5,"access":"w"}]}"#,
        ] {
            gantry_sys::bpf::load_device_program(&program(&of(json))).unwrap();
        }
    }
}
