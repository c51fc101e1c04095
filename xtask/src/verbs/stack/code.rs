//! What the instructions of a function say about the stack: how many bytes of it the function
//! uses, and which functions it calls or passes on as callbacks.
//!
//! The encoding is that of RFC 9669.

/// Size of an instruction, in bytes. A load of 64 bits takes two instructions.
const SIZE: usize = 8;

/// Register that points to the end of the frame: the frame is below it.
const FRAME: u8 = 10;

/// Registers that a call overwrites: 0 to 5.
const OF_CALLS: u8 = 6;

// Classes: the lower three bits of the opcode.
const LDX: u8 = 1;
const ST: u8 = 2;
const STX: u8 = 3;
const ALU: u8 = 4;
const JMP: u8 = 5;
const JMP32: u8 = 6;
const ALU64: u8 = 7;

// Opcodes.
const LOAD_64: u8 = 0x18;
const ADD: u8 = 0x07;
const SUBTRACT: u8 = 0x17;
const MOVE: u8 = 0xbf;
const JUMP: u8 = 0x05;
const JUMP_LONG: u8 = 0x06;
const CALL: u8 = 0x85;
const EXIT: u8 = 0x95;

/// Upper three bits of the opcode of an atomic operation.
const ATOMIC: u8 = 0xc0;

/// Value of the source register of a [`CALL`] of a BPF function.
const TO_FUNCTION: u8 = 1;

/// Value of the source register of a [`LOAD_64`] of a function's address.
const OF_FUNCTION: u8 = 4;

/// What the instructions of a function say.
#[derive(Debug, Default, PartialEq, Eq)]
pub(super) struct Body {
    /// Bytes of the stack that the function uses, not rounded.
    pub(super) uses: u64,
    /// Instructions that may lead to a function, in the order of the code.
    pub(super) references: Vec<Reference>,
}

/// An instruction that may lead to a function.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) struct Reference {
    /// Offset from the beginning of the function, in bytes.
    pub(super) offset: u64,
    /// Whether it is a call. Else it loads an address.
    pub(super) is_call: bool,
    /// Whether it leads to a function even if there is no relocation for it.
    is_relative: bool,
    imm: i32,
}

/// A place in the code.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub(super) struct Place {
    /// Index of the section.
    pub(super) section: usize,
    /// Offset in the section, in bytes.
    pub(super) offset: u64,
}

/// The symbol of a relocation.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) struct Symbol {
    /// The place that the symbol names.
    pub(super) place: Place,
    /// Whether the symbol stands for its section. The instruction then has the offset from it.
    pub(super) is_section: bool,
}

impl Reference {
    /// The place that the instruction leads to. `own` is the place of the instruction, `symbol` the
    /// symbol of its relocation. None if the instruction leads to no code of this object.
    pub(super) fn target(self, own: Place, symbol: Option<Symbol>) -> Option<Place> {
        let after = (i64::from(self.imm) + 1) * SIZE as i64;
        let (from, by) = match symbol {
            None if self.is_relative => (own, after),
            None => return None,
            Some(Symbol { place, is_section: false }) => (place, 0),
            Some(Symbol { place, .. }) if self.is_call => (place, after),
            Some(Symbol { place, .. }) => (place, i64::from(self.imm)),
        };
        let offset = from.offset.checked_add_signed(by)?;
        Some(Place { offset, ..from })
    }
}

/// Reads the instructions of a function. `little` is the byte order of the object.
///
/// The lowest address that the function accesses, or computes from the frame pointer and constants,
/// decides how many bytes it uses. The verifier counts the accesses on the paths that it walks, so
/// it may count fewer bytes.
pub(super) fn read(code: &[u8], little: bool) -> Body {
    let mut body = Body::default();
    let mut pointers = Pointers::default();
    let mut instructions = code.as_chunks::<SIZE>().0.iter().enumerate();
    while let Some((index, bytes)) = instructions.next() {
        let it = Instruction::read(*bytes, little);
        if let Some(lowest) = pointers.step(it).filter(|lowest| *lowest < 0) {
            body.uses = body.uses.max(lowest.unsigned_abs());
        }
        let is_call = it.opcode == CALL && it.src == TO_FUNCTION;
        let is_load = it.opcode == LOAD_64;
        if is_call || is_load {
            body.references.push(Reference {
                offset: (index * SIZE) as u64,
                is_call,
                is_relative: is_call || it.src == OF_FUNCTION,
                imm: it.imm,
            });
        }
        if is_load {
            instructions.next();
        }
    }
    body
}

/// The fields of an instruction.
#[derive(Clone, Copy, Debug)]
struct Instruction {
    opcode: u8,
    dst: u8,
    src: u8,
    off: i16,
    imm: i32,
}

impl Instruction {
    fn read(bytes: [u8; SIZE], little: bool) -> Self {
        let [opcode, registers, off_0, off_1, imm @ ..] = bytes;
        let (off, low, high) = ([off_0, off_1], registers & 0xf, registers >> 4);
        if little {
            let (off, imm) = (i16::from_le_bytes(off), i32::from_le_bytes(imm));
            Self { opcode, dst: low, src: high, off, imm }
        } else {
            let (off, imm) = (i16::from_be_bytes(off), i32::from_be_bytes(imm));
            Self { opcode, dst: high, src: low, off, imm }
        }
    }
}

/// The registers that point into the frame, with their distance from its end.
#[derive(Debug)]
struct Pointers([Option<i64>; 11]);

impl Default for Pointers {
    fn default() -> Self {
        let mut none = Self([None; 11]);
        none.set(FRAME, Some(0));
        none
    }
}

impl Pointers {
    /// Follows an instruction. Returns the distance of the place in the frame that the instruction
    /// accesses or computes the address of.
    fn step(&mut self, it: Instruction) -> Option<i64> {
        let at = |base: Option<i64>| base.map(|base| base + i64::from(it.off));
        match it.opcode & 0x07 {
            LDX => {
                let accessed = at(self.get(it.src));
                self.set(it.dst, None);
                accessed
            }
            ST => at(self.get(it.dst)),
            STX => {
                let accessed = at(self.get(it.dst));
                if it.opcode & 0xe0 == ATOMIC {
                    self.set(it.src, None);
                    self.set(0, None);
                }
                accessed
            }
            ALU | ALU64 => {
                let (source, target) = (self.get(it.src), self.get(it.dst));
                let value = match it.opcode {
                    // With an offset, it extends a sign or changes an address space.
                    MOVE if it.off == 0 => source,
                    ADD => target.map(|target| target.saturating_add(i64::from(it.imm))),
                    SUBTRACT => target.map(|target| target.saturating_sub(i64::from(it.imm))),
                    _ => None,
                };
                self.set(it.dst, value);
                value
            }
            JMP | JMP32 => {
                match it.opcode {
                    CALL => self.forget(OF_CALLS),
                    // What follows is not reached from here.
                    JUMP | JUMP_LONG | EXIT => self.forget(FRAME),
                    _ => {}
                }
                None
            }
            _ if it.opcode == LOAD_64 => {
                self.set(it.dst, None);
                None
            }
            // The other loads read a packet like a call of a helper.
            _ => {
                self.forget(OF_CALLS);
                None
            }
        }
    }

    fn get(&self, register: u8) -> Option<i64> {
        self.0.get(usize::from(register)).copied().flatten()
    }

    fn set(&mut self, register: u8, distance: Option<i64>) {
        if let Some(slot) = self.0.get_mut(usize::from(register)) {
            *slot = distance;
        }
    }

    /// Forgets the registers below `end`.
    fn forget(&mut self, end: u8) {
        for register in 0..end {
            self.set(register, None);
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    const LDXDW: u8 = 0x79;
    const STDW: u8 = 0x7a;
    const STXDW: u8 = 0x7b;
    const STXW: u8 = 0x63;
    const JEQ: u8 = 0x15;

    /// An instruction in the byte order of most machines.
    fn one(opcode: u8, dst: u8, src: u8, off: i16, imm: i32) -> [u8; SIZE] {
        let ([o0, o1], [i0, i1, i2, i3]) = (off.to_le_bytes(), imm.to_le_bytes());
        [opcode, (src << 4) | dst, o0, o1, i0, i1, i2, i3]
    }

    fn uses(code: &[[u8; SIZE]]) -> u64 {
        read(code.as_flattened(), true).uses
    }

    #[test]
    fn each_kind_of_access_below_the_frame_pointer_counts() {
        assert_eq!(uses(&[one(EXIT, 0, 0, 0, 0)]), 0);
        assert_eq!(uses(&[one(LDXDW, 1, FRAME, -24, 0)]), 24, "ldx");
        assert_eq!(uses(&[one(STDW, FRAME, 0, -32, 7)]), 32, "st");
        assert_eq!(uses(&[one(STXDW, FRAME, 1, -40, 0)]), 40, "stx");
        assert_eq!(uses(&[one(0xdb, FRAME, 1, -48, 0)]), 48, "atomic");
        let deepest_first =
            [one(STXW, FRAME, 1, -12, 0), one(STXW, FRAME, 1, -4, 0), one(EXIT, 0, 0, 0, 0)];
        assert_eq!(uses(&deepest_first), 12);
    }

    #[test]
    fn another_base_register_does_not_count() {
        assert_eq!(uses(&[one(LDXDW, FRAME, 1, -24, 0)]), 0);
        assert_eq!(uses(&[one(STXDW, 1, FRAME, -24, 0)]), 0, "the frame's address is stored");
    }

    #[test]
    fn an_address_below_the_frame_pointer_counts() {
        let copy = one(MOVE, 2, FRAME, 0, 0);
        assert_eq!(uses(&[copy, one(ADD, 2, 0, 0, -64)]), 64);
        assert_eq!(uses(&[copy, one(SUBTRACT, 2, 0, 0, 72)]), 72);
        // The compiler may place other instructions between the two.
        assert_eq!(uses(&[copy, one(MOVE, 3, 1, 0, 0), one(ADD, 2, 0, 0, -64)]), 64);
        let passed_on = [copy, one(ADD, 2, 0, 0, -64), one(MOVE, 6, 2, 0, 0)];
        assert_eq!(uses(&[&passed_on[..], &[one(ADD, 6, 0, 0, -16)]].concat()), 80);
        assert_eq!(uses(&[&passed_on[..], &[one(STXDW, 6, 1, -8, 0)]].concat()), 72);
    }

    #[test]
    fn a_register_with_another_value_does_not_count() {
        let copy = one(MOVE, 2, FRAME, 0, 0);
        let add = one(ADD, 2, 0, 0, -64);
        for (what, between) in [
            ("another value", one(MOVE, 2, 1, 0, 0)),
            ("an extended sign", one(MOVE, 2, FRAME, 32, 0)),
            ("a loaded value", one(LDXDW, 2, 1, 0, 0)),
            ("a call", one(CALL, 0, 0, 0, 1)),
            ("the end of the path", one(EXIT, 0, 0, 0, 0)),
            ("a jump to elsewhere", one(JUMP, 0, 0, 9, 0)),
        ] {
            assert_eq!(uses(&[copy, between, add]), 0, "{what}");
        }
        assert_eq!(uses(&[copy, one(JEQ, 1, 0, 9, 0), add]), 64, "the path goes on");
    }

    #[test]
    fn the_second_half_of_a_load_is_no_instruction() {
        // Read as an instruction, the half would be a store below the frame pointer.
        let code = [one(LOAD_64, 1, 0, 0, 5), one(STXDW, FRAME, 1, -24, 0)];
        let body = read(code.as_flattened(), true);
        assert_eq!(body.uses, 0);
        assert_eq!(body.references.len(), 1);
    }

    #[test]
    fn the_other_byte_order_has_the_registers_exchanged() {
        let [o0, o1] = (-24_i16).to_be_bytes();
        let store = [STXDW, (FRAME << 4) | 1, o0, o1, 0, 0, 0, 0];
        assert_eq!(read(&store, false).uses, 24);
        assert_eq!(read(&store, true).uses, 0);
    }

    #[test]
    fn references_are_calls_of_functions_and_loads() {
        let code = [
            one(CALL, 0, 0, 0, 1),
            one(CALL, 0, 2, 0, 1),
            one(CALL, 0, TO_FUNCTION, 0, -1),
            one(LOAD_64, 2, OF_FUNCTION, 0, 7),
            one(0, 0, 0, 0, 0),
            one(LOAD_64, 2, 0, 0, 64),
            one(0, 0, 0, 0, 0),
        ];
        let body = read(code.as_flattened(), true);
        let found: Vec<_> = body.references.iter().map(|it| (it.offset, it.is_call)).collect();
        assert_eq!(found, [(16, true), (24, false), (40, false)]);
    }

    #[test]
    fn a_reference_leads_to_its_symbol_or_from_its_own_place() {
        let (own, text) = (Place { section: 4, offset: 160 }, Place { section: 2, offset: 0 });
        let reference = |it| read(&one_load_or_call(it), true).references[0];
        let call = |imm| reference(one(CALL, 0, TO_FUNCTION, 0, imm));
        let load = |src, imm| reference(one(LOAD_64, 2, src, 0, imm));
        let section = Some(Symbol { place: text, is_section: true });
        let function = Some(Symbol { place: Place { section: 2, offset: 640 }, is_section: false });

        assert_eq!(call(-11).target(own, None), Some(Place { section: 4, offset: 80 }));
        assert_eq!(call(9).target(own, section), Some(Place { section: 2, offset: 80 }));
        assert_eq!(call(-1).target(own, function), Some(Place { section: 2, offset: 640 }));
        assert_eq!(
            load(OF_FUNCTION, 4).target(own, None),
            Some(Place { section: 4, offset: 200 }),
            "the kernel counts from the next instruction"
        );
        assert_eq!(load(0, 80).target(own, section), Some(Place { section: 2, offset: 80 }));
        assert_eq!(load(0, 0).target(own, function), Some(Place { section: 2, offset: 640 }));
        assert_eq!(load(0, 80).target(own, None), None, "a number");
        assert_eq!(call(-40).target(own, None), None, "before the section");
    }

    /// A call, or a load with its second half.
    fn one_load_or_call(it: [u8; SIZE]) -> Vec<u8> {
        [it, one(0, 0, 0, 0, 0)].concat()
    }
}
