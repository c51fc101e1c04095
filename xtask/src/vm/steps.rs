//! Single steps of the guest, by QEMU's GDB stub (GDB remote serial protocol).
//!
//! The guest sends `steps ADDRESS`, in hexadecimal, over its second serial port. The answer is
//! `ready`. Then the guest runs the code at the address twice. The answer to the second run is the
//! address of each instruction until the return to the caller, a line each, and `end`. The answer
//! is `failed` if an error occurs.

use std::io::{BufRead as _, BufReader, Read as _, Write as _};
use std::os::unix::net::UnixStream;
use std::path::{Path, PathBuf};
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};
use std::thread::JoinHandle;
use std::time::Duration;

use anyhow::{Context as _, Result, bail, ensure};

/// How long the emulator may take to answer, and the guest to reach the address.
const PATIENCE: Duration = Duration::from_secs(60);
/// Largest number of instructions in an answer.
const MOST: usize = 100_000;
/// Indexes of `rsp` and `rip` among the registers, of 8 bytes each (GDB's description of amd64).
const RSP: usize = 7;
const RIP: usize = 16;

/// A thread that answers the guest's requests until this value is dropped.
#[derive(Debug)]
pub(super) struct Steps {
    directory: PathBuf,
    ended: Arc<AtomicBool>,
    thread: Option<JoinHandle<Result<()>>>,
}

impl Steps {
    /// Starts the thread, which waits for an emulator with [`Self::options`].
    pub(super) fn start(directory: PathBuf) -> Result<Self> {
        std::fs::create_dir_all(&directory)
            .with_context(|| format!("{}: cannot be made", directory.display()))?;
        let ended = Arc::new(AtomicBool::new(false));
        let (stop, sockets) = (Arc::clone(&ended), directory.clone());
        let thread = std::thread::spawn(move || serve(&sockets, &stop));
        Ok(Self { directory, ended, thread: Some(thread) })
    }

    /// The emulator's options: the second serial port and the stub, both on sockets.
    pub(super) fn options(&self) -> Vec<String> {
        let (port, stub) = (port(&self.directory), stub(&self.directory));
        vec![
            "-chardev".to_owned(),
            format!("socket,id=steps,path={},server=on,wait=off", port.display()),
            "-serial".to_owned(),
            "chardev:steps".to_owned(),
            "-gdb".to_owned(),
            format!("unix:{},server=on,wait=off", stub.display()),
        ]
    }

    /// Ends the thread, after the emulator has ended.
    ///
    /// # Errors
    /// The reason why a request could not be answered.
    pub(super) fn end(mut self) -> Result<()> {
        self.ended.store(true, Ordering::Relaxed);
        let Some(thread) = self.thread.take() else { return Ok(()) };
        match thread.join() {
            Ok(result) => result,
            Err(_) => bail!("the thread that steps the guest panicked"),
        }
    }
}

impl Drop for Steps {
    fn drop(&mut self) {
        self.ended.store(true, Ordering::Relaxed);
        // The directory holds only the emulator's sockets.
        let _ = std::fs::remove_dir_all(&self.directory);
    }
}

fn port(directory: &Path) -> PathBuf {
    directory.join("port")
}

fn stub(directory: &Path) -> PathBuf {
    directory.join("stub")
}

/// Answers the requests of the guest until the emulator ends.
fn serve(directory: &Path, ended: &AtomicBool) -> Result<()> {
    let stream = loop {
        match UnixStream::connect(port(directory)) {
            Ok(stream) => break stream,
            Err(_) if ended.load(Ordering::Relaxed) => return Ok(()),
            Err(_) => std::thread::sleep(Duration::from_millis(50)),
        }
    };
    let mut answers = stream.try_clone().context("the guest's serial port")?;
    for line in BufReader::new(stream).lines() {
        let Ok(line) = line else { break };
        let Some(address) = line.trim().strip_prefix("steps ") else { continue };
        let address = u64::from_str_radix(address.trim_start_matches("0x"), 16)
            .with_context(|| format!("steps {address}: not an address"))?;
        let ready = || writeln!(&answers, "ready").context("the guest's serial port");
        let steps = match steps(&stub(directory), address, ready) {
            Ok(steps) => steps,
            Err(error) => {
                // The guest waits for an answer.
                writeln!(answers, "failed").context("the guest's serial port")?;
                return Err(error);
            }
        };
        let text: String = steps.iter().map(|at| format!("{at:x}\n")).collect();
        answers.write_all(format!("{text}end\n").as_bytes()).context("the guest's serial port")?;
    }
    Ok(())
}

/// The addresses of the instructions from `address` until the return to its caller.
fn steps(stub: &Path, address: u64, ready: impl FnOnce() -> Result<()>) -> Result<Vec<u64>> {
    // The emulator stops the guest when a client connects.
    let mut gdb = Gdb::connect(stub)?;
    gdb.expect(&format!("Z0,{address:x},1"), "OK")?;
    gdb.send("c")?;
    ready()?;
    // The guest's first run of the code renews what the program caches. It is not stepped.
    gdb.receive().context("the guest does not come to the address")?;
    gdb.expect(&format!("z0,{address:x},1"), "OK")?;
    gdb.ask("s")?;
    gdb.expect(&format!("Z0,{address:x},1"), "OK")?;
    gdb.ask("c").context("the guest does not come to the address again")?;
    let [stack, _] = gdb.registers()?;
    let caller = gdb.word_at(stack)?;
    gdb.expect(&format!("z0,{address:x},1"), "OK")?;
    let mut steps = Vec::new();
    loop {
        let [_, at] = gdb.registers()?;
        if at == caller {
            break;
        }
        steps.push(at);
        ensure!(steps.len() <= MOST, "{address:#x}: more than {MOST} instructions");
        gdb.ask("s")?;
    }
    Ok(steps)
}

/// A client of the stub. The guest is stopped while a client is connected, unless the client told
/// it to go on.
#[derive(Debug)]
struct Gdb {
    stream: BufReader<UnixStream>,
    /// The guest was made to continue, and has not stopped since.
    running: bool,
}

impl Gdb {
    fn connect(stub: &Path) -> Result<Self> {
        let stream = UnixStream::connect(stub).context("the emulator's GDB stub")?;
        stream.set_read_timeout(Some(PATIENCE)).context("the emulator's GDB stub")?;
        Ok(Self { stream: BufReader::new(stream), running: false })
    }

    fn send(&mut self, text: &str) -> Result<()> {
        let packet = packet(text);
        self.running = matches!(text, "c" | "s");
        self.stream.get_mut().write_all(packet.as_bytes()).context("the emulator's GDB stub")
    }

    /// Receives and acknowledges the next packet.
    fn receive(&mut self) -> Result<String> {
        let mut bytes = Vec::new();
        // The acknowledgements of our own packets are skipped.
        self.stream.read_until(b'$', &mut bytes).context("the emulator's GDB stub: no answer")?;
        bytes.clear();
        self.stream.read_until(b'#', &mut bytes).context("the emulator's GDB stub")?;
        ensure!(bytes.pop() == Some(b'#'), "the emulator's GDB stub has ended");
        let mut sum = [0; 2];
        self.stream.read_exact(&mut sum).context("the emulator's GDB stub")?;
        self.stream.get_mut().write_all(b"+").context("the emulator's GDB stub")?;
        self.running = false;
        String::from_utf8(bytes).context("the emulator's GDB stub: no text")
    }

    fn ask(&mut self, text: &str) -> Result<String> {
        self.send(text)?;
        self.receive()
    }

    fn expect(&mut self, text: &str, wanted: &str) -> Result<()> {
        let mut said = self.ask(text)?;
        // The stub reports at any time that the guest stopped when we connected. The report is
        // skipped.
        while said.starts_with('T') {
            said = self.receive()?;
        }
        ensure!(said == wanted, "the emulator's GDB stub: {text}: {said}");
        Ok(())
    }

    /// The stack pointer and the instruction pointer. All registers are read: the stub serves
    /// single registers only to a client that has read the register description.
    fn registers(&mut self) -> Result<[u64; 2]> {
        let said = self.ask("g")?;
        let at =
            |number: usize| number_of(said.get(16 * number..16 * (number + 1)).unwrap_or_default());
        Ok([at(RSP)?, at(RIP)?])
    }

    fn word_at(&mut self, address: u64) -> Result<u64> {
        let said = self.ask(&format!("m{address:x},8"))?;
        number_of(&said)
    }
}

impl Drop for Gdb {
    /// Lets the guest go on.
    fn drop(&mut self) {
        // A guest that runs is stopped first (Ctrl-C): otherwise QEMU accepts no packet. Errors are
        // ignored: the emulator has then ended.
        if self.running {
            let _ = self.stream.get_mut().write_all(b"\x03");
            let _ = self.receive();
        }
        let _ = self.expect("D", "OK");
    }
}

/// A packet with its checksum: the sum of its bytes, modulo 256.
fn packet(text: &str) -> String {
    let sum = text.bytes().fold(0_u8, u8::wrapping_add);
    format!("${text}#{sum:02x}")
}

/// Eight bytes in hexadecimal, the least significant first.
fn number_of(text: &str) -> Result<u64> {
    let number = u64::from_str_radix(text, 16).ok().filter(|_| text.len() == 16);
    number
        .map(u64::swap_bytes)
        .with_context(|| format!("the emulator's GDB stub: {text}: no number"))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn packets_have_a_checksum_and_numbers_their_low_byte_first() {
        assert_eq!(packet("OK"), "$OK#9a");
        assert_eq!(packet("p10"), "$p10#d1");
        assert_eq!(number_of("2301000000000080").ok(), Some(0x8000_0000_0000_0123));
        assert!(number_of("E01").is_err());
    }
}
