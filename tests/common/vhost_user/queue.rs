//! A split virtqueue from the driver's side (virtio 1.2, section 2.7).

use std::collections::VecDeque;
use std::os::fd::OwnedFd;
use std::time::{Duration, Instant};

use rustix::event::{EventfdFlags, PollFd, PollFlags, Timespec, eventfd, poll};
use rustix::io::{read, write};

use super::guest::Guest;
use super::message::{Message, request};

/// Descriptor flags.
pub mod flags {
    pub const NEXT: u16 = 1;
    pub const WRITE: u16 = 2;
    pub const INDIRECT: u16 = 4;
}

/// A descriptor.
#[derive(Clone, Copy, Debug)]
pub struct Descriptor {
    pub address: u64,
    pub length: u32,
    pub flags: u16,
    pub next: u16,
}

impl Descriptor {
    /// A device-readable buffer.
    pub fn readable(address: u64, length: u32) -> Self {
        Self {
            address,
            length,
            flags: 0,
            next: 0,
        }
    }

    /// A device-writable buffer.
    pub fn writable(address: u64, length: u32) -> Self {
        Self {
            address,
            length,
            flags: flags::WRITE,
            next: 0,
        }
    }

    /// An indirect descriptor table.
    pub fn indirect(address: u64, length: u32) -> Self {
        Self {
            address,
            length,
            flags: flags::INDIRECT,
            next: 0,
        }
    }

    /// Chains the descriptor to descriptor `next`.
    pub fn then(mut self, next: u16) -> Self {
        self.flags |= flags::NEXT;
        self.next = next;
        self
    }

    /// Encodes the descriptor.
    pub fn encode(&self) -> [u8; 16] {
        let mut bytes = [0; 16];
        bytes[..8].copy_from_slice(&self.address.to_le_bytes());
        bytes[8..12].copy_from_slice(&self.length.to_le_bytes());
        bytes[12..14].copy_from_slice(&self.flags.to_le_bytes());
        bytes[14..].copy_from_slice(&self.next.to_le_bytes());
        bytes
    }
}

/// A virtqueue.
pub struct Queue {
    /// The queue's index.
    pub index: u32,
    /// Number of descriptors.
    pub size: u16,
    /// Guest address of the descriptor table.
    pub descriptors: u64,
    /// Guest address of the available ring.
    pub available: u64,
    /// Guest address of the used ring.
    pub used: u64,
    /// Eventfd: the driver notifies the device.
    pub kick: OwnedFd,
    /// Eventfd: the device notifies the driver.
    pub call: OwnedFd,
    free: VecDeque<u16>,
    chains: Vec<Vec<u16>>,
    next_available: u16,
    next_used: u16,
}

impl Queue {
    /// Allocates a virtqueue in guest memory.
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

    /// Returns the messages that set up the queue, in QEMU's order.
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

    /// SET_VRING_ADDR with the front-end's virtual addresses of descriptor table, used and available
    /// ring.
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

    /// GET_VRING_BASE, which stops the queue.
    pub fn get_base(&self) -> Message {
        Message::new(request::GET_VRING_BASE).u32s([self.index, 0])
    }

    /// Writes an arbitrary descriptor to the table.
    pub fn write(&self, guest: &Guest, number: u16, descriptor: Descriptor) {
        let at = self.descriptors + 16 * u64::from(number);
        guest.write(at, &descriptor.encode());
    }

    /// Writes a chain of descriptors; returns the head's index. The descriptors are freed once the
    /// device has used the chain.
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

    /// Adds a chain to the available ring without a kick.
    pub fn offer(&mut self, guest: &Guest, head: u16) {
        let slot = u64::from(self.next_available % self.size);
        guest.store(self.available + 4 + 2 * slot, head);
        self.next_available = self.next_available.wrapping_add(1);
        guest.store(self.available + 2, self.next_available);
    }

    /// Notifies the device.
    pub fn kick(&self) {
        write(&self.kick, &1u64.to_ne_bytes()).expect("an eventfd takes a kick");
    }

    /// Adds a chain to the available ring and notifies the device.
    pub fn submit(&mut self, guest: &Guest, descriptors: &[Descriptor]) -> u16 {
        let head = self.chain(guest, descriptors);
        self.offer(guest, head);
        self.kick();
        head
    }

    /// Takes the next entry of the used ring, if any: the chain's head and the number of bytes that the
    /// device reports as written.
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

    /// Waits for the next entry of the used ring; returns `None` when the timeout expires.
    pub fn wait_used(&mut self, guest: &Guest, limit: Duration) -> Option<(u32, u32)> {
        let end = Instant::now() + limit;
        loop {
            if let Some(used) = self.take_used(guest) {
                return Some(used);
            }
            let left = end.checked_duration_since(Instant::now())?;
            // The notification may arrive before the ring was checked, or be suppressed: poll the ring
            // too.
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

    /// Returns the next available index, for SET_VRING_BASE.
    pub fn next_available(&self) -> u16 {
        self.next_available
    }
}
