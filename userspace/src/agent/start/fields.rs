//! Fields of the log's lines.

use std::fmt;

use tracing::field::{Field, Visit};
use tracing_subscriber::{
    field::RecordFields,
    fmt::{FormatFields, format::Writer},
};

use crate::printable::printable;

/// Writes the message and the fields of an event on one line, as `message field=value`. Characters
/// that act on a terminal are escaped: messages have names and paths from records of the store.
#[derive(Clone, Copy, Debug)]
pub(super) struct Fields;

impl<'writer> FormatFields<'writer> for Fields {
    fn format_fields<R: RecordFields>(&self, writer: Writer<'writer>, fields: R) -> fmt::Result {
        let mut line = Line { writer, is_empty: true, result: Ok(()) };
        fields.record(&mut line);
        line.result
    }
}

struct Line<'writer> {
    writer: Writer<'writer>,
    is_empty: bool,
    result: fmt::Result,
}

impl Line<'_> {
    fn add(&mut self, field: &Field, value: &str) {
        let name = field.name();
        // Those that the crate `log` adds are in the line already.
        if self.result.is_err() || name.starts_with("log.") {
            return;
        }
        let gap = if self.is_empty { "" } else { " " };
        let value = printable(value);
        self.is_empty = false;
        self.result = match name {
            "message" => write!(self.writer, "{gap}{value}"),
            _ => write!(self.writer, "{gap}{name}={value}"),
        };
    }
}

impl Visit for Line<'_> {
    fn record_str(&mut self, field: &Field, value: &str) {
        self.add(field, value);
    }

    fn record_debug(&mut self, field: &Field, value: &dyn fmt::Debug) {
        self.add(field, &format!("{value:?}"));
    }
}

#[cfg(test)]
mod tests {
    use std::{
        io,
        sync::{Arc, Mutex},
    };

    use super::*;

    #[derive(Clone, Default)]
    struct Sink(Arc<Mutex<Vec<u8>>>);

    impl io::Write for Sink {
        fn write(&mut self, bytes: &[u8]) -> io::Result<usize> {
            self.0.lock().unwrap().extend(bytes);
            Ok(bytes.len())
        }

        fn flush(&mut self) -> io::Result<()> {
            Ok(())
        }
    }

    #[test]
    fn a_line_of_the_log_is_one_line() {
        let sink = Sink::default();
        let writer = sink.clone();
        let subscriber = tracing_subscriber::fmt()
            .with_ansi(false)
            .without_time()
            .with_target(false)
            .fmt_fields(Fields)
            .with_writer(move || writer.clone())
            .finish();
        tracing::subscriber::with_default(subscriber, || {
            let bad = "/x\n2030-01-01 INFO all is well\u{1b}[2J";
            tracing::warn!(steps = 3, network = "blue", "endpoint {bad}: {}", "gone");
        });
        let text = String::from_utf8(sink.0.lock().unwrap().clone()).unwrap();
        let expected = " WARN endpoint /x\\n2030-01-01 INFO all is well\\u{1b}[2J: gone steps=3 network=blue\n";
        assert_eq!(text, expected);
    }
}
