//! `nat`.

use std::io::Write;

use crate::{
    api::{
        Backend,
        types::{NatPage, NatQuery, NatRow},
    },
    cli::{
        args::{Format, NatLsArgs},
        failure::Failure,
        output::{self, Pages, Row, or_dash},
    },
};

impl Row for NatRow {
    const HEADERS: &'static [&'static str] =
        &["PROTO", "STATE", "CONTAINER", "ORIG", "TRANSLATED", "TIMEOUT", "PACKETS", "BYTES"];

    fn cells(&self) -> Vec<String> {
        vec![
            self.protocol.name().to_owned(),
            self.state.clone(),
            or_dash(&self.container),
            format!("{}:{}→{}:{}", self.src, self.src_port, self.dst, self.dst_port),
            format!(
                "{}:{}→{}:{}",
                self.nat_src, self.nat_src_port, self.nat_dst, self.nat_dst_port
            ),
            output::duration(self.timeout_s),
            format!("{}/{}", self.orig_packets, self.reply_packets),
            format!("{}/{}", output::size(self.orig_bytes), output::size(self.reply_bytes)),
        ]
    }
}

pub(crate) async fn nat(
    backend: &dyn Backend,
    args: NatLsArgs,
    format: Format,
    out: &mut dyn Write,
) -> Result<(), Failure> {
    let NatLsArgs { container, protocol, address } = args;
    let mut query = NatQuery { container, protocol, address, from: None };
    let mut pages = Pages::new(format);
    // A full table has hundreds of thousands of flows: each page is printed when it is there.
    loop {
        let NatPage { rows, next } = backend.nat_page(query.clone()).await?;
        pages.print(out, &rows, next.is_none())?;
        if next.is_none() {
            return Ok(());
        }
        query.from = next;
    }
}
