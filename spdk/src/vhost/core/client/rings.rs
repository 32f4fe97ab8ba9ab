//! The rings of a client, between its control thread and the worker.

use super::*;

impl<D: Device> Client<'_, D> {
    /// Submits a job on the session to the worker, as soon as it accepts one.
    fn on_session(
        &self,
        session: NonNull<Session<D::Io>>,
        change: impl FnOnce(&Session<D::Io>) + 'static,
    ) -> Result<(), End> {
        let work = Handover((session, change));
        self.give(Box::new(move || {
            let (session, change) = work.take();
            // SAFETY: the session lives until the last job, which `leave` submits; jobs run in order.
            change(unsafe { session.as_ref() });
        }))
    }

    fn give(&self, mut job: Job) -> Result<(), End> {
        let begun = Instant::now();
        while let Err(back) = self.door.booking.worker().run(job) {
            if begun.elapsed() > BUSY_LIMIT {
                return Err(End::Broke("the worker takes no jobs".to_owned()));
            }
            job = back;
            std::thread::sleep(Duration::from_millis(1));
        }
        Ok(())
    }

    fn answer<T>(&self) -> (Answer<T>, Receiver<T>) {
        let (sender, receiver) = bounded(1);
        let bell = self.door.shared.bell.clone();
        (Answer { sender, bell }, receiver)
    }

    /// Awaits the worker's answer, unless the client disconnects. `None` if the worker dropped the sender.
    fn answered<T>(&mut self, receiver: &Receiver<T>) -> Result<Option<T>, End> {
        loop {
            match receiver.try_recv() {
                Ok(value) => return Ok(Some(value)),
                Err(TryRecvError::Disconnected) => return Ok(None),
                Err(TryRecvError::Empty) => {}
            }
            self.pass()?;
        }
    }

    /// Waits for the bell or a short time; fails once the client has disconnected.
    fn pass(&mut self) -> Result<(), End> {
        let events = self.wait(libc::POLLRDHUP, Some(RETRY))?;
        self.attend()?;
        if events & (libc::POLLRDHUP | libc::POLLHUP | libc::POLLERR) != 0 {
            return Err(End::Gone);
        }
        Ok(())
    }

    fn ring_number(ring: usize) -> u16 {
        u16::try_from(ring).unwrap_or(u16::MAX)
    }

    /// Returns the session, begun if there is none.
    fn session(&mut self, memory: &Arc<Memory>) -> Result<NonNull<Session<D::Io>>, End> {
        if let Some(session) = self.session {
            return Ok(session);
        }
        let (answer, receiver) = self.answer();
        let (device, memory) = (self.door.device.clone(), memory.clone());
        self.give(Box::new(move || {
            answer.send(Handover(Session::begin(device, memory)));
        }))?;
        // The worker begins the session whatever the client does meanwhile. Waiting unconditionally keeps it from
        // leaking.
        let session = receiver.recv()?.take();
        self.session = Some(session);
        Ok(session)
    }

    /// Starts all rings that can run.
    pub(super) fn start(&mut self) -> Result<(), End> {
        let Some(memory) = self.memory.clone() else {
            return Ok(());
        };
        let rings: Vec<_> = self.frontend.startable().collect();
        for ring in rings {
            let setup = self.frontend.ring(ring);
            let addresses = setup.addresses.unwrap_or_default();
            let places = locate(memory.regions(), setup.size, &addresses)?;
            let index = Self::ring_number(ring);
            let journal = self.inflight.as_ref();
            let queue = Queue::new(Parts {
                index,
                size: setup.size,
                features: self.frontend.features(),
                places,
                call: self.calls.remove(&ring),
                logged: self.logged(ring),
                journal: journal.and_then(|(map, area)| Journal::new(map, area, index, setup.size)),
            });
            let session = self.session(&memory)?;
            self.on_session(session, move |session| session.add(queue))?;
            self.frontend.started(ring);
        }
        Ok(())
    }

    /// Stops a ring, drains its requests, and returns the index of the next one.
    pub(super) fn stop(&mut self, ring: usize) -> Result<u16, End> {
        let setup = self.frontend.ring(ring);
        let (true, Some(session)) = (setup.runs, self.session) else {
            self.frontend.stopped(ring, setup.base);
            return Ok(setup.base);
        };
        let (answer, receiver) = self.answer();
        let index = Self::ring_number(ring);
        self.on_session(session, move |session| session.stop(index, answer))?;
        // Kept for `leave`, in case the client disconnects before the last request is done.
        self.stopping.insert(ring, receiver.clone());
        let stopped = self.answered(&receiver)?;
        self.stopping.remove(&ring);
        Ok(stopped.map_or(setup.base, |stopped| self.take_back(ring, stopped)))
    }

    /// Frees a ring that the worker returned.
    fn take_back(&mut self, ring: usize, stopped: Stopped<D::Io>) -> u16 {
        if let Some(fault) = stopped.fault {
            tracing::warn!(ring, error = %fault, "the driver of a vhost-user client broke a ring");
        }
        // SAFETY: created from a box by `Queue::new`; the worker has dropped its pointer, and no request is
        // outstanding.
        drop(unsafe { Box::from_raw(stopped.queue.take().as_ptr()) });
        self.frontend.stopped(ring, stopped.base);
        stopped.base
    }

    pub(super) fn enable(&mut self, ring: usize) -> Result<(), End> {
        let setup = self.frontend.ring(ring);
        let (true, Some(session)) = (setup.runs, self.session) else {
            return self.start();
        };
        let (answer, receiver) = self.answer();
        let index = Self::ring_number(ring);
        self.on_session(session, move |session| {
            session.pause(index, !setup.enabled);
            answer.send(());
        })?;
        self.answered(&receiver).map(drop)
    }

    pub(super) fn set_call(&mut self, ring: usize, call: Option<Call>) -> Result<(), End> {
        let (true, Some(session)) = (self.frontend.ring(ring).runs, self.session) else {
            self.calls.remove(&ring);
            self.calls.extend(call.map(|call| (ring, call)));
            return Ok(());
        };
        let (answer, receiver) = self.answer();
        let index = Self::ring_number(ring);
        self.on_session(session, move |session| {
            answer.send(session.set_call(index, call))
        })?;
        // The previous eventfd is closed here, not on the worker.
        self.answered(&receiver).map(drop)
    }

    /// Returns how writes of a ring are logged, if they are.
    fn logged(&self, ring: usize) -> Option<Logged> {
        const LOG_USED: u32 = 1;
        let dirty = self.dirty.clone()?;
        let addresses = self.frontend.ring(ring).addresses?;
        let used = (addresses.flags & LOG_USED != 0).then_some(addresses.log);
        let all = self.frontend.features() & feature::LOG_ALL != 0;
        all.then_some(Logged { dirty, used })
    }

    pub(super) fn relog(&mut self) -> Result<(), End> {
        let Some(session) = self.session else {
            return Ok(());
        };
        let running: Vec<_> = self.frontend.running().collect();
        for ring in running {
            let (answer, receiver) = self.answer();
            let (index, logged) = (Self::ring_number(ring), self.logged(ring));
            self.on_session(session, move |session| {
                answer.send(Handover(session.set_logged(index, logged)));
            })?;
            self.answered(&receiver)?;
        }
        Ok(())
    }

    /// Waits for requests that use replaced memory, while these tables leave no room for one of `bytes`.
    pub(super) fn make_room(&mut self, bytes: u64) -> Result<(), End> {
        while !self.retired.is_empty() && !self.room.has(bytes) {
            self.pass()?;
        }
        Ok(())
    }

    /// Moves the running rings to new memory.
    pub(super) fn remap(&mut self, memory: Arc<Memory>) -> Result<(), End> {
        if let Some(session) = self.session {
            let rings: Vec<_> = self.frontend.running().collect();
            let mut places = Vec::with_capacity(rings.len());
            for ring in rings {
                let setup = self.frontend.ring(ring);
                let addresses = setup.addresses.unwrap_or_default();
                let place = locate(memory.regions(), setup.size, &addresses)?;
                places.push((Self::ring_number(ring), place));
            }
            let (answer, receiver) = self.answer();
            let new = memory.clone();
            self.on_session(session, move |session| {
                session.remap(new, &places);
                answer.send(places);
            })?;
            self.answered(&receiver)?;
        }
        self.retired.extend(self.memory.replace(memory));
        // Backpressure: each retired table occupies mappings of this process.
        while self.retired.len() > MAX_RETIRED {
            self.pass()?;
        }
        Ok(())
    }

    /// Ends the session and frees what the client shared. Returns once no request is outstanding, however long that
    /// takes; the result tells whether requests were aborted.
    pub(in super::super) fn leave(mut self) -> bool {
        self.door.shared.disconnect();
        let Some(session) = self.session.take() else {
            return false;
        };
        let mut waiting = Vec::new();
        let running: Vec<_> = self.frontend.running().collect();
        for ring in running {
            let receiver = self.stopping.remove(&ring).unwrap_or_else(|| {
                let (answer, receiver) = self.answer();
                let index = Self::ring_number(ring);
                self.insist(session, move |session| {
                    // SAFETY: the session lives until the last job, submitted below; jobs run in order.
                    unsafe { session.as_ref() }.stop(index, answer);
                });
                receiver
            });
            waiting.push((ring, receiver));
        }
        let patience = Instant::now() + PATIENCE;
        let mut aborted = false;
        for (ring, receiver) in waiting {
            loop {
                match receiver.try_recv() {
                    Ok(stopped) => {
                        self.take_back(ring, stopped);
                        break;
                    }
                    Err(TryRecvError::Disconnected) => break,
                    Err(TryRecvError::Empty) => {}
                }
                let bell = Some(self.door.shared.bell.as_raw_fd());
                wait([(bell, libc::POLLIN)], Some(RETRY));
                self.door.shared.bell.hush();
                self.door.keep();
                let late = self.door.shared.is_aborted() && Instant::now() >= patience;
                if late && !std::mem::replace(&mut aborted, true) {
                    self.insist(session, |session| {
                        // SAFETY: the session lives until the last job, submitted below; jobs run in order.
                        unsafe { session.as_ref() }.io().abort();
                    });
                }
            }
        }
        let (answer, receiver) = self.answer();
        self.insist(session, move |session| {
            // SAFETY: this is the last job on the session, and all of its rings were returned.
            unsafe { Session::end(session) };
            answer.send(());
        });
        // If the worker ended without running the job, the session leaks, but nothing in use was freed.
        let _ = receiver.recv();
        aborted
    }

    /// As [`on_session`](Self::on_session), for jobs that must run however busy the worker is.
    fn insist(
        &self,
        session: NonNull<Session<D::Io>>,
        change: impl FnOnce(NonNull<Session<D::Io>>) + 'static,
    ) {
        let work = Handover((session, change));
        let mut job: Job = Box::new(move || {
            let (session, change) = work.take();
            change(session);
        });
        while let Err(back) = self.door.booking.worker().run(job) {
            job = back;
            std::thread::sleep(Duration::from_millis(1));
        }
    }
}
