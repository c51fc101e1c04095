//! The deepest chain of calls of a program, as the verifier's `check_max_stack_depth` computes it.

use std::collections::{BTreeMap, BTreeSet};

use anyhow::{Context as _, Result, bail};

/// How the verifier rounds the size of a frame.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, clap::ValueEnum)]
pub(super) enum Round {
    /// Up to a multiple of 16 bytes: Linux 6.9 or newer, with its compiler (JIT)
    #[value(name = "16")]
    To16,
    /// Up to a multiple of 32 bytes, at least 32: Linux up to 6.8, and the interpreter
    #[default]
    #[value(name = "32")]
    To32,
}

impl Round {
    /// Bytes that the verifier counts for a function that uses `bytes`.
    fn up(self, bytes: u64) -> u64 {
        match self {
            Self::To16 => bytes.next_multiple_of(16),
            Self::To32 => bytes.max(1).next_multiple_of(32),
        }
    }
}

/// A function of the object.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(super) struct Function {
    /// Name for people.
    pub(super) name: String,
    /// Bytes of the stack that the function itself uses, not rounded.
    pub(super) uses: u64,
    /// The functions that it calls or passes on as callbacks: indices in the list of functions.
    pub(super) calls: BTreeSet<usize>,
}

/// A frame of the deepest chain.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(super) struct Frame {
    /// Name of the function.
    pub(super) name: String,
    /// Bytes that the function uses.
    pub(super) uses: u64,
    /// Bytes that the verifier counts for it.
    pub(super) counts: u64,
}

/// A program and its deepest chain.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(super) struct Program {
    /// Name of the program.
    pub(super) name: String,
    /// The chain that takes the most bytes. The program itself is the first frame. Functions at the
    /// end that take nothing are left out.
    pub(super) frames: Vec<Frame>,
    /// Sum of the bytes that the verifier counts.
    pub(super) bytes: u64,
    /// The largest number of frames of a chain, which need not be the one with the most bytes.
    pub(super) longest: usize,
}

/// The deepest chain of the function at index `start` of `functions`.
///
/// # Errors
///
/// A function calls itself, also through others: the verifier refuses that. An index is not in
/// `functions`.
pub(super) fn program(functions: &[Function], start: usize, round: Round) -> Result<Program> {
    let mut search = Search { functions, round, known: BTreeMap::new(), path: Vec::new() };
    let whole = search.visit(start)?;
    let mut frames = Vec::new();
    let mut next = Some(start);
    while let Some(at) = next {
        let function = search.function(at)?;
        frames.push(Frame {
            name: function.name.clone(),
            uses: function.uses,
            counts: round.up(function.uses),
        });
        next = search.visit(at)?.next;
    }
    let name = search.function(start)?.name.clone();
    Ok(Program { name, frames, bytes: whole.bytes, longest: whole.frames })
}

/// What is known of a function and everything that it calls.
#[derive(Clone, Copy, Debug)]
struct Depth {
    /// The most bytes of a chain that begins with the function.
    bytes: u64,
    /// The most frames of such a chain.
    frames: usize,
    /// The second function of the chain with the most bytes.
    next: Option<usize>,
}

/// A walk through the calls.
#[derive(Debug)]
struct Search<'a> {
    functions: &'a [Function],
    round: Round,
    /// Functions that were walked through.
    known: BTreeMap<usize, Depth>,
    /// The functions from the start to the current one.
    path: Vec<usize>,
}

impl<'a> Search<'a> {
    fn function(&self, at: usize) -> Result<&'a Function> {
        self.functions.get(at).with_context(|| format!("function {at}: is not in the object"))
    }

    fn visit(&mut self, at: usize) -> Result<Depth> {
        if let Some(known) = self.known.get(&at) {
            return Ok(*known);
        }
        let function = self.function(at)?;
        if let Some(first) = self.path.iter().position(|other| *other == at) {
            let circle = self.path.iter().skip(first).chain([&at]);
            let names = circle.map(|it| self.function(*it).map(|it| it.name.as_str()));
            let names = names.collect::<Result<Vec<_>>>()?;
            bail!("{}: a circle of calls, which the verifier refuses", names.join(" > "));
        }
        self.path.push(at);
        let mut below = Depth { bytes: 0, frames: 0, next: None };
        for callee in &function.calls {
            let depth = self.visit(*callee)?;
            below.frames = below.frames.max(depth.frames);
            if depth.bytes > below.bytes {
                below.bytes = depth.bytes;
                below.next = Some(*callee);
            }
        }
        self.path.pop();
        let depth = Depth {
            bytes: below.bytes.saturating_add(self.round.up(function.uses)),
            frames: below.frames + 1,
            next: below.next,
        };
        self.known.insert(at, depth);
        Ok(depth)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn function(name: &str, uses: u64, calls: &[usize]) -> Function {
        Function { name: name.to_owned(), uses, calls: calls.iter().copied().collect() }
    }

    /// The names and the counted bytes of a chain.
    fn chain(program: &Program) -> Vec<(&str, u64)> {
        program.frames.iter().map(|frame| (frame.name.as_str(), frame.counts)).collect()
    }

    #[test]
    fn a_frame_is_rounded_as_the_verifier_does() {
        for (uses, to_16, to_32) in
            [(0, 0, 32), (1, 16, 32), (16, 16, 32), (17, 32, 32), (33, 48, 64), (264, 272, 288)]
        {
            assert_eq!((Round::To16.up(uses), Round::To32.up(uses)), (to_16, to_32), "{uses}");
        }
    }

    #[test]
    fn the_deepest_chain_is_the_one_with_the_most_bytes() {
        let functions = [
            function("program", 264, &[1, 2]),
            function("wide", 232, &[]),
            function("long", 40, &[3]),
            function("longer", 56, &[4]),
            function("end", 24, &[]),
        ];
        let found = program(&functions, 0, Round::To16).expect("no circle");
        assert_eq!(chain(&found), [("program", 272), ("wide", 240)]);
        assert_eq!((found.bytes, found.longest), (512, 4));
        assert_eq!(found.frames[0].uses, 264);
    }

    #[test]
    fn the_rounding_may_decide_which_chain_is_the_deepest() {
        let functions = [
            function("program", 32, &[1, 2]),
            function("one", 64, &[]),
            function("three", 16, &[3]),
            function("of", 16, &[4]),
            function("them", 16, &[]),
        ];
        let at_16 = program(&functions, 0, Round::To16).expect("no circle");
        assert_eq!(chain(&at_16), [("program", 32), ("one", 64)]);
        let at_32 = program(&functions, 0, Round::To32).expect("no circle");
        assert_eq!((at_32.bytes, at_32.frames.len()), (128, 4));
    }

    #[test]
    fn functions_without_a_frame_count_as_frames_but_not_as_bytes() {
        let functions = [function("program", 16, &[1]), function("memset", 0, &[])];
        let found = program(&functions, 0, Round::To16).expect("no circle");
        assert_eq!(chain(&found), [("program", 16)]);
        assert_eq!((found.bytes, found.longest), (16, 2));
        let found = program(&functions, 0, Round::To32).expect("no circle");
        assert_eq!(chain(&found), [("program", 32), ("memset", 32)]);
    }

    #[test]
    fn a_function_that_two_call_is_below_both() {
        let functions = [
            function("program", 16, &[1, 2]),
            function("left", 32, &[3]),
            function("right", 48, &[3]),
            function("shared", 64, &[]),
        ];
        let found = program(&functions, 0, Round::To16).expect("no circle");
        assert_eq!(chain(&found), [("program", 16), ("right", 48), ("shared", 64)]);
    }

    #[test]
    fn a_circle_is_named() {
        let functions =
            [function("program", 16, &[1]), function("one", 16, &[2]), function("other", 16, &[1])];
        let error = program(&functions, 0, Round::To16).expect_err("a circle").to_string();
        assert!(error.starts_with("one > other > one: "), "{error}");
    }
}
