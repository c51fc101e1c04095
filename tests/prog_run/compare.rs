//! Comparison of frames and counters, with a readable difference.

use culvert_common::abi::{Code, Counter, Direction, stats_index};

/// The outer UDP source port of a tunnelled frame.
pub(crate) fn entropy_port(frame: &[u8]) -> u16 {
    u16::from_be_bytes([frame[34], frame[35]])
}

/// Names a counter.
pub(crate) fn describe(index: u32, counter: Counter) -> String {
    let name = Direction::ALL
        .iter()
        .flat_map(|direction| Code::all().map(move |code| (*direction, code)))
        .find(|(direction, code)| stats_index(*direction, *code) == index)
        .map_or_else(
            || format!("no code #{index}"),
            |(direction, code)| format!("{}/{}", direction.name(), code.name()),
        );
    format!("{name}: {} packets, {} bytes", counter.packets, counter.bytes)
}

/// Compares frames, and shows where they differ.
#[track_caller]
pub(crate) fn same(what: &str, actual: &[u8], wanted: &[u8]) {
    if actual == wanted {
        return;
    }
    let at = actual.iter().zip(wanted).position(|(a, b)| a != b);
    panic!(
        "{what}: {} bytes, wanted {}; first difference at {at:?}\nis     {}\nwanted {}",
        actual.len(),
        wanted.len(),
        hex(actual),
        hex(wanted)
    );
}

/// Compares tunnelled frames except for the entropy port, which must be in its range.
#[track_caller]
pub(crate) fn same_tunnelled(what: &str, actual: &[u8], wanted: &[u8]) {
    let mut wanted = wanted.to_vec();
    if actual.len() >= 36 {
        let port = entropy_port(actual);
        assert!(port >= 49_152, "{what}: {port} is no entropy port (RFC 7348 §5)");
        wanted[34..36].copy_from_slice(&port.to_be_bytes());
    }
    same(what, actual, &wanted);
}

/// The bytes in hexadecimal, 16 in a group.
pub(crate) fn hex(bytes: &[u8]) -> String {
    bytes
        .chunks(16)
        .map(|chunk| chunk.iter().map(|byte| format!("{byte:02x}")).collect::<String>())
        .collect::<Vec<_>>()
        .join(" ")
}
