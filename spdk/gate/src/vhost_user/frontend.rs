//! The state that a client's messages build up, and which messages are valid in it.
//!
//! ```text
//! a ring: size, base, addresses ── kick, enabled, memory ─► runs ── GET_VRING_BASE ─► stopped
//!                                                            │ call, kick, enable, log, memory: allowed
//!                                                            └ size, base, other addresses: refused
//! ```

use super::inflight::Area;
use super::message::Message;
use super::ring::{Addresses, check_size};
use super::{Fault, MAX_RING_ENTRIES, MAX_RINGS, feature, protocol};

/// What a device offers to clients.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Offer {
    /// Virtio features.
    pub features: u64,
    /// Protocol features.
    pub protocol: u64,
    /// Number of rings that can be set up.
    pub rings: usize,
    /// The number of queues reported to a client.
    pub told: u64,
}

/// A client's settings of one ring.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq)]
pub struct Setup {
    /// Number of entries; 0 until set.
    pub size: u16,
    /// Index of the next available entry to take.
    pub base: u16,
    /// Addresses of its parts.
    pub addresses: Option<Addresses>,
    /// SET_VRING_KICK was received.
    pub kicked: bool,
    /// Enabled by SET_VRING_ENABLE.
    pub enabled: bool,
    /// Owned by the worker: handed over and not yet returned.
    pub runs: bool,
}

/// What the device has to do for a message.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Action {
    /// Nothing more.
    Done,
    /// Reply with a number.
    Reply(u64),
    /// Map this memory in place of the current one; running rings continue in it.
    MapMemory,
    /// Map the dirty log.
    MapLog {
        /// Size in bytes.
        size: u64,
        /// Offset in its file.
        offset: u64,
    },
    /// Close the descriptors that came with the message.
    Discard,
    /// Tell the worker how writes are logged from now on: features or the ring's addresses have changed.
    Relog,
    /// Stop a ring, and reply with its base once its outstanding requests have drained.
    StopRing {
        /// The ring's index.
        ring: usize,
    },
    /// Stop all rings.
    StopAll,
    /// SET_VRING_KICK was received: start the rings that can start.
    Kick,
    /// Take the fd that interrupts the driver.
    Call {
        /// The ring's index.
        ring: usize,
    },
    /// Start or pause a ring.
    Enable {
        /// The ring's index.
        ring: usize,
    },
    /// Keep the channel for backend requests to the client.
    Channel,
    /// Reply with a part of the configuration space.
    Config,
    /// Create an inflight area, and reply with it.
    MakeInflight(Area),
    /// Map the client's inflight area.
    MapInflight(Area),
}

/// The negotiated and configured state of a client.
#[derive(Debug)]
pub struct Frontend {
    offer: Offer,
    features: u64,
    protocol: u64,
    memory: bool,
    rings: [Setup; MAX_RINGS],
}

impl Frontend {
    /// Creates the state of a client that has sent nothing.
    pub fn new(offer: Offer) -> Self {
        Self {
            offer,
            features: 0,
            protocol: 0,
            memory: false,
            rings: [Setup::default(); MAX_RINGS],
        }
    }

    /// Returns the negotiated virtio features.
    pub const fn features(&self) -> u64 {
        self.features
    }

    /// Returns the negotiated protocol features.
    pub const fn protocol(&self) -> u64 {
        self.protocol
    }

    /// Returns the settings of a ring.
    pub fn ring(&self, ring: usize) -> Setup {
        self.rings.get(ring).copied().unwrap_or_default()
    }

    /// Yields the rings that can run and do not: with a size, addresses, memory and SET_VRING_KICK, and enabled if
    /// protocol features are negotiated.
    pub fn startable(&self) -> impl Iterator<Item = usize> {
        let enabled = |setup: &Setup| setup.enabled || self.features & feature::PROTOCOL == 0;
        let found = self.rings.iter().enumerate().filter(move |(_, setup)| {
            self.memory
                && setup.size > 0
                && setup.addresses.is_some()
                && setup.kicked
                && enabled(setup)
                && !setup.runs
        });
        found.map(|(ring, _)| ring)
    }

    /// Yields the running rings.
    pub fn running(&self) -> impl Iterator<Item = usize> {
        let found = self.rings.iter().enumerate();
        found.filter(|(_, setup)| setup.runs).map(|(ring, _)| ring)
    }

    /// Records that a ring was handed to the worker.
    pub fn started(&mut self, ring: usize) {
        if let Some(setup) = self.rings.get_mut(ring) {
            setup.runs = true;
        }
    }

    /// Records that the worker returned a ring: it continues at `base`, and the next SET_VRING_KICK starts it again.
    pub fn stopped(&mut self, ring: usize, base: u16) {
        if let Some(setup) = self.rings.get_mut(ring) {
            setup.runs = false;
            setup.kicked = false;
            setup.base = base;
        }
    }

    /// Validates a message in the current state, applies its settings, and returns the action it requires.
    ///
    /// # Errors
    /// The message is invalid, or not valid in this state.
    pub fn apply(&mut self, message: &Message) -> Result<Action, Fault> {
        Ok(match *message {
            Message::GetFeatures => Action::Reply(self.offer.features),
            Message::SetFeatures(features) => return self.set_features(features),
            Message::SetOwner => Action::Done,
            Message::ResetOwner => Action::StopAll,
            Message::SetMemTable(_) => {
                self.memory = true;
                Action::MapMemory
            }
            Message::SetLogBase { size, offset } => {
                self.negotiated(protocol::LOG_FILE)?;
                Action::MapLog { size, offset }
            }
            Message::SetLogFd | Message::SetError { .. } => Action::Discard,
            Message::SetRingSize { ring, size } => {
                let size = check_size(size)?;
                let others = self.entries(ring);
                let setup = self.stopped_ring(ring)?;
                if others.saturating_add(size.into()) > MAX_RING_ENTRIES {
                    return Err(Fault::new(
                        "all rings together may have 32768 entries",
                        size.into(),
                    ));
                }
                setup.size = size;
                Action::Done
            }
            Message::SetRingBase { ring, base } => {
                let base = u16::try_from(base)
                    .map_err(|_| Fault::new("a ring's base must be below 65536", base.into()))?;
                self.stopped_ring(ring)?.base = base;
                Action::Done
            }
            Message::SetRingAddresses { ring, addresses } => {
                let setup = self.any_ring(ring)?;
                let runs = setup.runs;
                let stays = |before: Addresses| before.same_places(&addresses);
                if runs && !setup.addresses.is_some_and(stays) {
                    return Err(Fault::new(
                        "a ring that runs must stay where it is",
                        addresses.descriptors,
                    ));
                }
                setup.addresses = Some(addresses);
                if runs { Action::Relog } else { Action::Done }
            }
            Message::GetRingBase { ring } => {
                self.any_ring(ring)?;
                Action::StopRing { ring }
            }
            Message::SetKick { ring } => {
                self.any_ring(ring)?.kicked = true;
                Action::Kick
            }
            Message::SetCall { ring } => {
                self.any_ring(ring)?;
                Action::Call { ring }
            }
            Message::GetProtocolFeatures => Action::Reply(self.offer.protocol),
            Message::SetProtocolFeatures(features) => {
                let unknown = features & !self.offer.protocol;
                if unknown != 0 {
                    return Err(Fault::new(
                        "protocol features must be offered ones",
                        unknown,
                    ));
                }
                self.protocol = features;
                Action::Done
            }
            Message::GetQueueNum => Action::Reply(self.offer.told),
            Message::SetRingEnable { ring, enable } => {
                self.any_ring(ring)?.enabled = enable;
                Action::Enable { ring }
            }
            Message::SetBackendChannel => {
                self.negotiated(protocol::BACKEND_REQUESTS)?;
                Action::Channel
            }
            Message::GetConfig(_) => {
                self.negotiated(protocol::CONFIG)?;
                Action::Config
            }
            // Drivers write the cache mode there; no device here offers it, so it is ignored.
            Message::SetConfig(_) => Action::Done,
            Message::GetInflight(area) => {
                self.negotiated(protocol::INFLIGHT)?;
                area.check()?;
                Action::MakeInflight(area)
            }
            Message::SetInflight(area) => {
                self.negotiated(protocol::INFLIGHT)?;
                area.check_given()?;
                if self.running().next().is_some() {
                    return Err(Fault::new(
                        "an inflight area must come before the first ring runs",
                        area.size,
                    ));
                }
                Action::MapInflight(area)
            }
        })
    }

    fn set_features(&mut self, features: u64) -> Result<Action, Fault> {
        let unknown = features & !self.offer.features;
        if unknown != 0 {
            return Err(Fault::new("features must be offered ones", unknown));
        }
        let changed = self.features ^ features;
        let runs = self.running().next().is_some();
        if runs && changed & !feature::LOG_ALL != 0 {
            return Err(Fault::new(
                "features must not change while a ring runs",
                changed,
            ));
        }
        self.features = features;
        Ok(if runs { Action::Relog } else { Action::Done })
    }

    fn negotiated(&self, bit: u64) -> Result<(), Fault> {
        // Only offered, not negotiated: SPDK's own driver sends some of these messages before it negotiates.
        if self.offer.protocol & bit == 0 {
            return Err(Fault::new("the protocol feature is not offered", bit));
        }
        Ok(())
    }

    /// Entries of all rings other than this one.
    fn entries(&self, ring: usize) -> u32 {
        let others = self.rings.iter().enumerate().filter(|(at, _)| *at != ring);
        others.fold(0, |sum, (_, setup)| sum.saturating_add(setup.size.into()))
    }

    fn any_ring(&mut self, ring: usize) -> Result<&mut Setup, Fault> {
        let fault = Fault::new("the device does not have that ring", ring as u64);
        if ring >= self.offer.rings {
            return Err(fault);
        }
        self.rings.get_mut(ring).ok_or(fault)
    }

    fn stopped_ring(&mut self, ring: usize) -> Result<&mut Setup, Fault> {
        let setup = self.any_ring(ring)?;
        if setup.runs {
            return Err(Fault::new(
                "a ring that runs must be stopped before it changes",
                ring as u64,
            ));
        }
        Ok(setup)
    }
}
