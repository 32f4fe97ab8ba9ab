//! One split virtqueue, as a driver sees it (virtio 1.2, section 2.7).

use std::collections::VecDeque;
use std::os::fd::OwnedFd;
use std::time::{Duration, Instant};

use rustix::event::{EventfdFlags, PollFd, PollFlags, Timespec, eventfd, poll};
use rustix::io::{read, write};

use super::guest::Guest;
use super::message::{Message, request};

/// Bits of a descriptor's flags.
pub mod flags {
    pub const NEXT: u16 = 1;
    pub const WRITE: u16 = 2;
    pub const INDIRECT: u16 = 4;
}

/// One descriptor.
#[derive(Clone, Copy, Debug)]
pub struct Descriptor {
    pub address: u64,
    pub length: u32,
    pub flags: u16,
    pub next: u16,
}

impl Descriptor {
    /// Memory that the device reads.
    pub fn readable(address: u64, length: u32) -> Self {
        Self {
            address,
            length,
            flags: 0,
            next: 0,
        }
    }

    /// Memory that the device writes.
    pub fn writable(address: u64, length: u32) -> Self {
        Self {
            address,
            length,
            flags: flags::WRITE,
            next: 0,
        }
    }

    /// A table of descriptors.
    pub fn indirect(address: u64, length: u32) -> Self {
        Self {
            address,
            length,
            flags: flags::INDIRECT,
            next: 0,
        }
    }

    /// The next of its chain is the one of this number.
    pub fn then(mut self, next: u16) -> Self {
        self.flags |= flags::NEXT;
        self.next = next;
        self
    }

    /// How memory has it.
    pub fn encode(&self) -> [u8; 16] {
        let mut bytes = [0; 16];
        bytes[..8].copy_from_slice(&self.address.to_le_bytes());
        bytes[8..12].copy_from_slice(&self.length.to_le_bytes());
        bytes[12..14].copy_from_slice(&self.flags.to_le_bytes());
        bytes[14..].copy_from_slice(&self.next.to_le_bytes());
        bytes
    }
}

/// A ring.
pub struct Queue {
    /// Its number.
    pub index: u32,
    /// Its descriptors.
    pub size: u16,
    /// Where its descriptors are, a guest's address.
    pub descriptors: u64,
    /// Where the driver tells of chains.
    pub available: u64,
    /// Where the device tells of chains.
    pub used: u64,
    /// The device hears of chains here.
    pub kick: OwnedFd,
    /// The driver hears of chains here.
    pub call: OwnedFd,
    free: VecDeque<u16>,
    chains: Vec<Vec<u16>>,
    next_available: u16,
    next_used: u16,
}

impl Queue {
    /// A ring in the guest's memory.
    pub fn new(guest: &mut Guest, index: u32, size: u16) -> Self {
        let entries = u64::from(size);
        let event = || eventfd(0, EventfdFlags::NONBLOCK | EventfdFlags::CLOEXEC);
        Self {
            index,
            size,
            descriptors: guest.allocate(16 * entries, 4096),
            available: guest.allocate(6 + 2 * entries, 64),
            used: guest.allocate(6 + 8 * entries, 64),
            kick: event().expect("an eventfd"),
            call: event().expect("an eventfd"),
            free: (0..size).collect(),
            chains: vec![Vec::new(); usize::from(size)],
            next_available: 0,
            next_used: 0,
        }
    }

    /// The messages that set it up, in the order that QEMU sends them.
    pub fn setup(&self, guest: &Guest) -> [Message; 5] {
        [
            self.set_num(self.size.into()),
            self.set_base(self.next_available),
            self.set_addresses(
                [self.descriptors, self.used, self.available].map(|at| guest.user(at)),
            ),
            self.set_kick(),
            self.set_call(),
        ]
    }

    /// SET_VRING_NUM.
    pub fn set_num(&self, size: u32) -> Message {
        Message::new(request::SET_VRING_NUM).u32s([self.index, size])
    }

    /// SET_VRING_BASE.
    pub fn set_base(&self, base: u16) -> Message {
        Message::new(request::SET_VRING_BASE).u32s([self.index, base.into()])
    }

    /// SET_VRING_ADDR with the front-end's addresses of descriptors, used and available ring.
    pub fn set_addresses(&self, [descriptors, used, available]: [u64; 3]) -> Message {
        let message = Message::new(request::SET_VRING_ADDR).u32s([self.index, 0]);
        message.u64s([descriptors, used, available, 0])
    }

    /// SET_VRING_KICK.
    pub fn set_kick(&self) -> Message {
        Message::new(request::SET_VRING_KICK)
            .u64s([self.index.into()])
            .fd(&self.kick)
    }

    /// SET_VRING_CALL.
    pub fn set_call(&self) -> Message {
        Message::new(request::SET_VRING_CALL)
            .u64s([self.index.into()])
            .fd(&self.call)
    }

    /// SET_VRING_ENABLE.
    pub fn set_enable(&self, enable: bool) -> Message {
        Message::new(request::SET_VRING_ENABLE).u32s([self.index, enable.into()])
    }

    /// GET_VRING_BASE, which stops it.
    pub fn get_base(&self) -> Message {
        Message::new(request::GET_VRING_BASE).u32s([self.index, 0])
    }

    /// Writes one descriptor as it is.
    pub fn write(&self, guest: &Guest, number: u16, descriptor: Descriptor) {
        let at = self.descriptors + 16 * u64::from(number);
        guest.write(at, &descriptor.encode());
    }

    /// Writes descriptors that are linked one to the next; the first one's number. They are free again
    /// once the device has used them.
    pub fn chain(&mut self, guest: &Guest, descriptors: &[Descriptor]) -> u16 {
        assert!(descriptors.len() <= self.free.len(), "the ring is full");
        let numbers: Vec<u16> = self.free.drain(..descriptors.len()).collect();
        for (at, descriptor) in descriptors.iter().enumerate() {
            let linked = numbers.get(at + 1).map(|next| descriptor.then(*next));
            self.write(guest, numbers[at], linked.unwrap_or(*descriptor));
        }
        let head = numbers[0];
        self.chains[usize::from(head)] = numbers;
        head
    }

    /// Offers a chain to the device without a kick.
    pub fn offer(&mut self, guest: &Guest, head: u16) {
        let slot = u64::from(self.next_available % self.size);
        guest.store(self.available + 4 + 2 * slot, head);
        self.next_available = self.next_available.wrapping_add(1);
        guest.store(self.available + 2, self.next_available);
    }

    /// Tells the device that there is something.
    pub fn kick(&self) {
        write(&self.kick, &1u64.to_ne_bytes()).expect("an eventfd takes a kick");
    }

    /// Offers a chain and kicks.
    pub fn submit(&mut self, guest: &Guest, descriptors: &[Descriptor]) -> u16 {
        let head = self.chain(guest, descriptors);
        self.offer(guest, head);
        self.kick();
        head
    }

    /// Takes the next chain that the device is done with, if there is one: its number and how many bytes
    /// the device says that it wrote.
    pub fn take_used(&mut self, guest: &Guest) -> Option<(u32, u32)> {
        if guest.load::<u16>(self.used + 2) == self.next_used {
            return None;
        }
        let at = self.used + 4 + 8 * u64::from(self.next_used % self.size);
        let (id, length) = (guest.load::<u32>(at), guest.load::<u32>(at + 4));
        self.next_used = self.next_used.wrapping_add(1);
        if let Some(chain) = self.chains.get_mut(id as usize) {
            self.free.extend(std::mem::take(chain));
        }
        Some((id, length))
    }

    /// Waits for a chain that the device is done with.
    pub fn wait_used(&mut self, guest: &Guest, limit: Duration) -> Option<(u32, u32)> {
        let end = Instant::now() + limit;
        loop {
            if let Some(used) = self.take_used(guest) {
                return Some(used);
            }
            let left = end.checked_duration_since(Instant::now())?;
            // A call may come before its entry is looked at, or be left out.
            let left = left.min(Duration::from_millis(20));
            let timeout = Timespec {
                tv_sec: 0,
                tv_nsec: left.subsec_nanos().into(),
            };
            let mut fds = [PollFd::new(&self.call, PollFlags::IN)];
            if poll(&mut fds, Some(&timeout)).is_ok_and(|ready| ready > 0) {
                let _ = read(&self.call, &mut [0; 8]);
            }
        }
    }

    /// Where the device is told to go on by SET_VRING_BASE.
    pub fn next_available(&self) -> u16 {
        self.next_available
    }
}
