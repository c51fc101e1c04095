//! The clock of the store, read over HTTP.
//!
//! etcd's API has no clock. The HTTP answers on the same TCP port have a `Date` (RFC 9110 §6.6.1),
//! in whole seconds.

use std::time::{Duration, SystemTime, UNIX_EPOCH};

use tokio::{
    io::{AsyncReadExt as _, AsyncWriteExt as _},
    net::TcpStream,
    time::timeout,
};

/// Timeout of one endpoint's answer.
const LIMIT: Duration = Duration::from_millis(500);
/// Number of bytes of an answer that are read.
const ANSWER: u64 = 4096;

/// How far the clock of the first endpoint that answers is ahead of this host's clock, in ms. 0 if
/// the difference is below the resolution of a `Date`, 1 s.
pub(super) async fn offset_ms(endpoints: &[String]) -> Option<i64> {
    for endpoint in endpoints {
        if let Ok(Some(date)) = timeout(LIMIT, ask(endpoint)).await {
            let now = SystemTime::now().duration_since(UNIX_EPOCH).ok()?;
            let now_ms = i64::try_from(now.as_millis()).ok()?;
            // The server's time is somewhere within the second that the answer names.
            let (begin, end) = (date * 1000, date * 1000 + 999);
            return Some(if now_ms < begin { begin - now_ms } else { (end - now_ms).min(0) });
        }
    }
    None
}

async fn ask(endpoint: &str) -> Option<i64> {
    let mut stream = TcpStream::connect(endpoint).await.ok()?;
    let request = format!("GET /version HTTP/1.0\r\nHost: {endpoint}\r\n\r\n");
    stream.write_all(request.as_bytes()).await.ok()?;
    let mut answer = Vec::new();
    stream.take(ANSWER).read_to_end(&mut answer).await.ok()?;
    let answer = String::from_utf8_lossy(&answer);
    answer.lines().find_map(|line| {
        let (name, value) = line.split_once(':')?;
        if name.eq_ignore_ascii_case("date") { parse_date(value.trim()) } else { None }
    })
}

/// Seconds since 1970 of an IMF-fixdate, `Mon, 23 Nov 2026 21:06:40 GMT`.
fn parse_date(text: &str) -> Option<i64> {
    const MONTHS: [&str; 12] =
        ["Jan", "Feb", "Mar", "Apr", "May", "Jun", "Jul", "Aug", "Sep", "Oct", "Nov", "Dec"];
    let (_, rest) = text.split_once(", ")?;
    let mut parts = rest.split(' ');
    let day: i64 = parts.next()?.parse().ok()?;
    let month = parts.next()?;
    let month = i64::try_from(MONTHS.iter().position(|name| *name == month)?).ok()? + 1;
    let year: i64 = parts.next()?.parse().ok()?;
    let mut time = parts.next()?.split(':').map(|part| part.parse::<i64>().ok());
    let (hour, minute, second) = (time.next()??, time.next()??, time.next()??);
    let valid = (1970..10_000).contains(&year)
        && (1..=31).contains(&day)
        && (0..24).contains(&hour)
        && (0..60).contains(&minute)
        && (0..=60).contains(&second);
    valid.then(|| days(year, month, day) * 86_400 + hour * 3600 + minute * 60 + second)
}

/// Days since 1970-01-01 in the Gregorian calendar, counted in years that begin
/// in March so that the leap day is the last.
const fn days(year: i64, month: i64, day: i64) -> i64 {
    let year = if month <= 2 { year - 1 } else { year };
    let day_of_year = (153 * ((month + 9) % 12) + 2) / 5 + day - 1;
    365 * year + year / 4 - year / 100 + year / 400 + day_of_year - 719_468
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn dates_of_http() {
        for (text, seconds) in [
            ("Thu, 01 Jan 1970 00:00:00 GMT", Some(0)),
            ("Sun, 06 Nov 1994 08:49:37 GMT", Some(784_111_777)),
            ("Tue, 29 Feb 2000 23:59:59 GMT", Some(951_868_799)),
            ("Mon, 23 Nov 2026 21:06:40 GMT", Some(1_795_468_000)),
            ("Sun, 06 Nov 1994 25:49:37 GMT", None),
            ("06 Nov 1994", None),
            ("", None),
        ] {
            assert_eq!(parse_date(text), seconds, "{text}");
        }
    }
}
