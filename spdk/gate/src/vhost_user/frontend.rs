//! What a client may do now: the state that its messages build up, and what each of them means in it.
//!
//! ```text
//! a ring: size, base, addresses ── kick, enabled, memory ─► runs ── GET_VRING_BASE ─► stopped
//!                                                            │ call, kick, enable, log, memory: yes
//!                                                            └ size, base, other places: no
//! ```

use super::inflight::Area;
use super::message::Message;
use super::ring::{Addresses, check_size};
use super::{Fault, MAX_RING_ENTRIES, MAX_RINGS, feature, protocol};

/// What a device offers.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Offer {
    /// Virtio features.
    pub features: u64,
    /// Protocol features.
    pub protocol: u64,
    /// Rings that can be set up.
    pub rings: usize,
    /// The number of queues that a client is told.
    pub told: u64,
}

/// What a client has set up of a ring.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq)]
pub struct Setup {
    /// Entries; 0 until it is told.
    pub size: u16,
    /// Index of the next request to take.
    pub base: u16,
    /// Where it is.
    pub addresses: Option<Addresses>,
    /// It was kicked.
    pub kicked: bool,
    /// It was enabled by a message.
    pub enabled: bool,
    /// It was handed to the worker, and not asked back.
    pub runs: bool,
}

/// What is to be done for a message.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Action {
    /// Nothing more.
    Done,
    /// Answer a number.
    Reply(u64),
    /// Map this memory in place of what there is; running rings go on in it.
    MapMemory,
    /// Map the log.
    MapLog {
        /// Bytes.
        size: u64,
        /// Where it begins in its file.
        offset: u64,
    },
    /// Close what the message brought.
    Discard,
    /// Tell the worker how writes are logged now: features, or the ring's addresses, have changed.
    Relog,
    /// Stop a ring, and answer its base once none of its requests is outstanding.
    StopRing {
        /// Which.
        ring: usize,
    },
    /// Stop all rings.
    StopAll,
    /// A ring was kicked: start what can start.
    Kick,
    /// Take the fd by which the driver is called.
    Call {
        /// Which.
        ring: usize,
    },
    /// Start or pause a ring.
    Enable {
        /// Which.
        ring: usize,
    },
    /// Keep the channel for requests to the client.
    Channel,
    /// Answer a part of the configuration space.
    Config,
    /// Make an inflight area, and answer it.
    MakeInflight(Area),
    /// Map the client's inflight area.
    MapInflight(Area),
}

/// What a client has negotiated and set up.
#[derive(Debug)]
pub struct Frontend {
    offer: Offer,
    features: u64,
    protocol: u64,
    memory: bool,
    rings: [Setup; MAX_RINGS],
}

impl Frontend {
    /// A client that has said nothing.
    pub fn new(offer: Offer) -> Self {
        Self {
            offer,
            features: 0,
            protocol: 0,
            memory: false,
            rings: [Setup::default(); MAX_RINGS],
        }
    }

    /// Features that both know.
    pub const fn features(&self) -> u64 {
        self.features
    }

    /// Protocol features that both know.
    pub const fn protocol(&self) -> u64 {
        self.protocol
    }

    /// What there is of a ring.
    pub fn ring(&self, ring: usize) -> Setup {
        self.rings.get(ring).copied().unwrap_or_default()
    }

    /// Rings that can run and do not: with a size, a place, memory, and a kick, enabled where that is
    /// negotiated.
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

    /// Rings that run.
    pub fn running(&self) -> impl Iterator<Item = usize> {
        let found = self.rings.iter().enumerate();
        found.filter(|(_, setup)| setup.runs).map(|(ring, _)| ring)
    }

    /// A ring was handed to the worker.
    pub fn started(&mut self, ring: usize) {
        if let Some(setup) = self.rings.get_mut(ring) {
            setup.runs = true;
        }
    }

    /// A ring was given back by the worker: the next request is that of `base`, and a kick starts it again.
    pub fn stopped(&mut self, ring: usize, base: u16) {
        if let Some(setup) = self.rings.get_mut(ring) {
            setup.runs = false;
            setup.kicked = false;
            setup.base = base;
        }
    }

    /// Says what a message means now, and keeps what it sets.
    ///
    /// # Errors
    /// It is not allowed, or not now.
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
            // Drivers write the cache mode there, which no device here offers.
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
        // SPDK's own driver asks for some of it before it negotiates.
        if self.offer.protocol & bit == 0 {
            return Err(Fault::new("the protocol feature is not offered", bit));
        }
        Ok(())
    }

    /// Entries of all rings but this.
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
