//! A pseudoterminal and an emulation of its screen.

use std::fs::File;
use std::io::{Read, Write};
use std::os::fd::OwnedFd;
use std::process::{Child, Command, ExitStatus};
use std::sync::{Arc, Mutex};
use std::time::Duration;

use rustix::pty::{OpenptFlags, grantpt, openpt, ptsname, unlockpt};
use rustix::termios::{Winsize, tcsetwinsize};

use crate::common::poll_blocking;

/// A terminal with a running program.
pub struct Terminal {
    child: Child,
    master: File,
    screen: Arc<Mutex<Screen>>,
}

impl Terminal {
    /// Runs the program under test in a new session with this controlling terminal.
    pub fn start(args: &[&str], rows: u16, columns: u16) -> Self {
        let master = openpt(OpenptFlags::RDWR | OpenptFlags::NOCTTY).expect("a pseudo terminal");
        grantpt(&master).expect("granted");
        unlockpt(&master).expect("unlocked");
        let name = ptsname(&master, Vec::new()).expect("a name");
        let name = name.into_string().expect("UTF-8");
        let open = || {
            let file = File::options().read(true).write(true).open(&name);
            file.expect("the other end")
        };
        // Both ends are open before the program starts, so that the size is kept.
        let end = open();
        set_size(&master, rows, columns);
        let child = Command::new("setsid")
            .args(["--ctty", env!("CARGO_BIN_EXE_opi-spdk")])
            .args(args)
            .env("TERM", "xterm-256color")
            .env_remove("COLUMNS")
            .env_remove("LINES")
            .stdin(end.try_clone().expect("the same"))
            .stdout(end.try_clone().expect("the same"))
            .stderr(end)
            .spawn()
            .expect("setsid is installed");
        let screen = Arc::new(Mutex::new(Screen::new(rows, columns)));
        let master = File::from(master);
        let mut reader = master.try_clone().expect("the same");
        let drawn = Arc::clone(&screen);
        std::thread::spawn(move || {
            let mut bytes = [0; 4096];
            // The read fails once the other end is closed.
            while let Ok(length @ 1..) = reader.read(&mut bytes) {
                drawn.lock().expect("no panic").write(&bytes[..length]);
            }
        });
        Self {
            child,
            master,
            screen,
        }
    }

    /// Types keys.
    pub fn press(&mut self, keys: &str) {
        self.master
            .write_all(keys.as_bytes())
            .expect("the keys are written");
    }

    /// Resizes the terminal and clears its screen.
    pub fn resize(&mut self, rows: u16, columns: u16) {
        *self.screen.lock().expect("no panic") = Screen::new(rows, columns);
        let master: OwnedFd = self.master.try_clone().expect("the same").into();
        set_size(&master, rows, columns);
    }

    /// Returns the screen's text.
    pub fn screen(&self) -> String {
        self.screen.lock().expect("no panic").text()
    }

    /// Waits for the program's exit.
    pub fn ended(&mut self, within: Duration) -> ExitStatus {
        let ended = poll_blocking(within, || self.child.try_wait().expect("a child"));
        ended.unwrap_or_else(|| panic!("the program did not exit:\n{}", self.screen()))
    }
}

impl Drop for Terminal {
    fn drop(&mut self) {
        let _ = self.child.kill();
        let _ = self.child.wait();
    }
}

fn set_size(master: &OwnedFd, rows: u16, columns: u16) {
    let size = Winsize {
        ws_row: rows,
        ws_col: columns,
        ws_xpixel: 0,
        ws_ypixel: 0,
    };
    tcsetwinsize(master, size).expect("a size");
}

/// The subset of a terminal emulator that a program with absolute cursor positioning needs.
struct Screen {
    cells: Vec<Vec<char>>,
    row: usize,
    column: usize,
    /// An incomplete escape sequence or UTF-8 character.
    begun: Vec<u8>,
}

impl Screen {
    fn new(rows: u16, columns: u16) -> Self {
        Self {
            cells: vec![vec![' '; columns.into()]; rows.into()],
            row: 0,
            column: 0,
            begun: Vec::new(),
        }
    }

    fn text(&self) -> String {
        let lines = self
            .cells
            .iter()
            .map(|line| line.iter().collect::<String>());
        let lines: Vec<String> = lines.map(|line| line.trim_end().to_owned()).collect();
        lines.join("\n")
    }

    fn write(&mut self, bytes: &[u8]) {
        for &byte in bytes {
            if self.begun.is_empty() && byte < 0x20 && byte != 0x1b {
                match byte {
                    b'\r' => self.column = 0,
                    b'\n' => self.row += 1,
                    _ => {}
                }
                continue;
            }
            self.begun.push(byte);
            if self.begun[0] == 0x1b {
                self.sequence();
            } else if let Ok(text) = std::str::from_utf8(&self.begun) {
                let letter = text.chars().next().expect("a character");
                self.begun.clear();
                self.put(letter);
            }
        }
    }

    fn put(&mut self, letter: char) {
        let cell = self
            .cells
            .get_mut(self.row)
            .and_then(|line| line.get_mut(self.column));
        if let Some(cell) = cell {
            *cell = letter;
        }
        self.column += 1;
    }

    /// Executes the escape sequence once it is complete.
    fn sequence(&mut self) {
        let &[_, kind, ref rest @ ..] = self.begun.as_slice() else {
            return;
        };
        if kind != b'[' {
            self.begun.clear();
            return;
        }
        let Some((&last, numbers)) = rest.split_last() else {
            return;
        };
        if !(0x40..0x7f).contains(&last) {
            return;
        }
        let numbers = String::from_utf8_lossy(numbers).into_owned();
        let numbers: Vec<usize> = numbers.split(';').map(|n| n.parse().unwrap_or(0)).collect();
        let number = |at: usize| numbers.get(at).copied().unwrap_or(0);
        match last {
            b'H' => {
                self.row = number(0).saturating_sub(1);
                self.column = number(1).saturating_sub(1);
            }
            b'J' => self.cells.iter_mut().for_each(|line| line.fill(' ')),
            b'K' => {
                if let Some(line) = self.cells.get_mut(self.row) {
                    let from = self.column.min(line.len());
                    line[from..].fill(' ');
                }
            }
            b'C' => self.column += number(0).max(1),
            b'G' => self.column = number(0).saturating_sub(1),
            _ => {}
        }
        self.begun.clear();
    }
}
