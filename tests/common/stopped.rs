//! A thread of the target that is stopped with ptrace, as by a debugger.

use std::sync::mpsc::{Receiver, Sender, channel};
use std::thread::JoinHandle;

use nix::sys::ptrace;
use nix::sys::wait::{WaitPidFlag, waitpid};
use nix::unistd::Pid;

use super::Target;

/// A stopped thread of another process; it continues when this is dropped.
pub struct Stopped {
    go_on: Sender<()>,
    tracer: JoinHandle<()>,
}

impl Stopped {
    /// Stops a thread.
    pub fn new(thread: i32) -> Self {
        let (it, is_stopped) = Self::begin(thread, None);
        is_stopped.recv().expect("the thread is stopped");
        it
    }

    /// Stops a thread at its next system call of this number. Returns once each of its calls is looked at.
    pub fn at(thread: i32, call: i64) -> Self {
        let (it, is_traced) = Self::begin(thread, u64::try_from(call).ok());
        is_traced.recv().expect("the thread is traced");
        it
    }

    /// All ptrace calls for a thread must be made by one tracer thread, which tells that it has stopped the thread for
    /// the first time.
    fn begin(thread: i32, call: Option<u64>) -> (Self, Receiver<()>) {
        let (go_on, wait) = channel::<()>();
        let (stopped, is_stopped) = channel();
        let tracer = std::thread::spawn(move || {
            let thread = Pid::from_raw(thread);
            let stops = || {
                let all = Some(WaitPidFlag::__WALL);
                waitpid(thread, all).expect("the thread stops");
            };
            ptrace::seize(thread, ptrace::Options::PTRACE_O_TRACESYSGOOD).expect("seized");
            ptrace::interrupt(thread).expect("interrupted");
            stops();
            stopped.send(()).expect("the test waits for it");
            while call.is_some_and(|call| call != call_of(thread)) {
                ptrace::syscall(thread, None).expect("the thread continues");
                stops();
            }
            // Also returns if the test panics and drops the sender.
            let _ = wait.recv();
            ptrace::detach(thread, None).expect("the thread continues");
        });
        (Self { go_on, tracer }, is_stopped)
    }

    /// Lets the thread go on.
    ///
    /// # Panics
    /// If the tracer failed.
    pub fn go_on(self) {
        drop(self.go_on);
        self.tracer.join().expect("no panic");
    }
}

/// Returns the number of the system call that a stopped thread makes.
#[cfg(target_arch = "x86_64")]
fn call_of(thread: Pid) -> u64 {
    ptrace::getregs(thread)
        .expect("the thread is stopped")
        .orig_rax
}

/// Returns the number of the system call that a stopped thread makes.
#[cfg(target_arch = "aarch64")]
fn call_of(thread: Pid) -> u64 {
    ptrace::getregs(thread).expect("the thread is stopped").regs[8]
}

/// Returns the thread ID of the target's reactor on a core.
pub fn reactor(target: &Target, core: u32) -> i32 {
    let tasks = format!("/proc/{}/task", target.pid().as_raw_nonzero());
    let tasks = std::fs::read_dir(tasks).expect("the target runs").flatten();
    let mut threads = tasks.filter_map(|task| {
        let name = std::fs::read_to_string(task.path().join("comm")).ok()?;
        let id = task.file_name().to_str()?.parse().ok()?;
        (name.trim_end() == format!("reactor_{core}")).then_some(id)
    });
    threads.next().expect("a reactor")
}
