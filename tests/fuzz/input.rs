//! The corpus, and changes of its inputs.

use std::{
    fs,
    path::{Path, PathBuf},
};

use culvert_tests::chaos::Random;

/// Parts of JSON that parsers may mistake.
const TOKENS: [&str; 24] = [
    "null",
    "true",
    "-1",
    "0",
    "65536",
    "4294967296",
    "18446744073709551616",
    "1e999",
    "0.5",
    "\"\"",
    "\"\\u0000\"",
    "\"\\ud800\"",
    "\"\\u001b[2J\"",
    "\"/proc/1/ns/net\"",
    "\"../..\"",
    "\"255.255.255.255\"",
    "\"::ffff:10.0.0.1\"",
    "\"0.0.0.0/0\"",
    "\"ff:ff:ff:ff:ff:ff\"",
    "{}",
    "[]",
    "[[[[[[[[[[[[[[[[",
    ",",
    "\"schema\":",
];

/// Length in bytes of the longest input.
const LONGEST: usize = 20_000;

/// An input, and its path in its folder of the corpus.
#[derive(Clone, Debug)]
pub(crate) struct Input {
    pub(crate) name: String,
    pub(crate) bytes: Vec<u8>,
}

/// The inputs in a folder of the corpus, in the order of their names.
pub(crate) fn corpus(folder: &str) -> Vec<Input> {
    let root = Path::new(env!("CARGO_MANIFEST_DIR")).join("fuzz/corpus").join(folder);
    let mut all = Vec::new();
    collect(&root, &mut all);
    all.sort();
    assert!(!all.is_empty(), "{}: no inputs", root.display());
    let name = |path: &Path| path.strip_prefix(&root).unwrap().to_str().unwrap().to_owned();
    all.iter().map(|path| Input { name: name(path), bytes: fs::read(path).unwrap() }).collect()
}

fn collect(folder: &Path, all: &mut Vec<PathBuf>) {
    for entry in fs::read_dir(folder).unwrap() {
        let path = entry.unwrap().path();
        if path.is_dir() {
            collect(&path, all);
        } else {
            all.push(path);
        }
    }
}

fn below(random: &mut Random, bound: usize) -> usize {
    random.index(bound.max(1))
}

/// A range of at most `most` bytes of `bytes`.
fn part(random: &mut Random, bytes: &[u8], most: usize) -> std::ops::Range<usize> {
    let start = below(random, bytes.len());
    start..(start + below(random, most)).min(bytes.len())
}

/// Changes an input; `others` are inputs from which parts are copied.
pub(crate) fn mutate(random: &mut Random, bytes: &mut Vec<u8>, others: &[Input]) {
    for _ in 0..random.below(5) {
        let at = below(random, bytes.len() + 1);
        match random.below(8) {
            0 => {
                let bit = 1_u8 << random.below(8);
                if let Some(byte) = bytes.get_mut(at) {
                    *byte ^= bit;
                }
            }
            1 => {
                let value = random.below(256) as u8;
                bytes.insert(at, value);
            }
            2 => bytes.truncate(at),
            3 => {
                let removed = part(random, bytes, 40);
                bytes.drain(removed);
            }
            4 => {
                let copied = part(random, bytes, 200);
                let copy = bytes[copied].to_vec();
                bytes.splice(at..at, copy);
            }
            5 => {
                let other = &random.pick(others).bytes;
                let copy = other[part(random, other, 200)].to_vec();
                bytes.splice(at..at, copy);
            }
            _ => replace_value(random, bytes),
        }
    }
    bytes.truncate(LONGEST);
}

/// Replaces one value of JSON, or a part of the input, by a token.
fn replace_value(random: &mut Random, bytes: &mut Vec<u8>) {
    let token = random.pick(&TOKENS).as_bytes().to_vec();
    let colons: Vec<usize> = (0..bytes.len()).filter(|at| bytes[*at] == b':').collect();
    let range = if colons.is_empty() {
        part(random, bytes, 20)
    } else {
        let start = random.pick(&colons) + 1;
        let rest = &bytes[start..];
        let len = rest.iter().position(|byte| b",}\n".contains(byte)).unwrap_or(rest.len());
        start..start + len
    };
    bytes.splice(range, token);
}
