//! The worker: one thread for both directions, run to completion, off every other lock.
//!
//! ```text
//! drain both directions ─▶ nothing there? poll a while, giving the core away ─▶ sleep until something comes
//! ```
//!
//! Waking another core costs a few microseconds on one machine and fifty on another; a thread that polls for a bounded
//! time with `sched_yield` between is not asleep when the answer comes.  Whether that pays is learnt from the recent
//! past: work that came within the time a poll covers speaks for it, work that came later against.
//!
//! A panic ends the worker, marks the lane as broken, and rings the bell: the loop thread brings the daemon to an end
//! that is explained.

use std::panic::{AssertUnwindSafe, catch_unwind};
use std::sync::atomic::{AtomicBool, AtomicUsize, Ordering};
use std::sync::{Arc, Mutex, PoisonError};
use std::thread::JoinHandle;

use crate::lane::{Bounds, Lane, Token};
use crate::sys::{self, Bell, Waiter};

/// How long it is polled for: covers request and response at some thousands a second.
const POLL_SECONDS: f64 = 0.001_2;
const SCORE_MAX: i32 = 16;
const SCORE_HIT: i32 = 4;

/// A lane, its worker, and the bells between them and the loop thread.
pub struct Engine {
    shared: Arc<Shared>,
    thread: Mutex<Option<JoinHandle<()>>>,
}

struct Shared {
    lane: Mutex<Lane>,
    /// How many others want the lane.
    wanted: AtomicUsize,
    is_stopping: AtomicBool,
    waiter: Arc<Waiter>,
    wake: Bell,
    bell: Arc<Bell>,
    failure: Mutex<Option<String>>,
    is_to_break: AtomicBool,
}

/// The engine broke: what it said.
#[derive(Debug)]
pub struct Broken(pub String);

impl Engine {
    /// One that carries nothing yet; its worker is not started.
    pub fn new(bounds: Bounds) -> std::io::Result<Engine> {
        let (waiter, wake, bell) = (Arc::new(Waiter::new()?), Bell::new()?, Arc::new(Bell::new()?));
        waiter.watch(wake.fd(), Token::Wake.number())?;
        let lane = Lane::new(waiter.clone(), bell.clone(), bounds, sys::now());
        let shared = Arc::new(Shared {
            lane: Mutex::new(lane),
            wanted: AtomicUsize::new(0),
            is_stopping: AtomicBool::new(false),
            waiter,
            wake,
            bell,
            failure: Mutex::new(None),
            is_to_break: AtomicBool::new(false),
        });
        Ok(Engine { shared, thread: Mutex::new(None) })
    }

    /// Starts the worker.
    pub fn start(&self) -> std::io::Result<()> {
        let shared = self.shared.clone();
        let thread = std::thread::Builder::new().name("weft-lane".into()).spawn(move || shared.run())?;
        *self.thread.lock().unwrap_or_else(PoisonError::into_inner) = Some(thread);
        Ok(())
    }

    /// Stops the worker and waits for it.  Idempotent.
    pub fn stop(&self) {
        self.shared.is_stopping.store(true, Ordering::SeqCst);
        self.shared.wake.ring();
        let thread = self.thread.lock().unwrap_or_else(PoisonError::into_inner).take();
        if let Some(thread) = thread {
            let _ = thread.join(); // its panic was noted
        }
    }

    /// One turn on this thread, for an engine whose worker was not started; whether there was anything to do.
    pub fn turn_once(&self) -> bool {
        let mut tokens = vec![];
        self.shared.waiter.wait(&mut tokens, false);
        self.shared.turn(&tokens)
    }

    /// Readable when there are questions, notices, frames to show, or a failure.
    pub fn bell(&self) -> &Bell {
        &self.shared.bell
    }

    /// What the engine said when it broke.
    pub fn failure(&self) -> Option<String> {
        self.shared.failure.lock().unwrap_or_else(PoisonError::into_inner).clone()
    }

    /// Makes the worker panic at its next turn.  For tests of what comes then.
    pub fn break_on_purpose(&self) {
        self.shared.is_to_break.store(true, Ordering::SeqCst);
        self.shared.wake.ring();
    }

    /// Does something with the lane, the worker held off: at most for the rest of its turn are we.
    pub fn with_lane<T>(&self, work: impl FnOnce(&mut Lane) -> T) -> Result<T, Broken> {
        self.shared.wanted.fetch_add(1, Ordering::SeqCst);
        let locked = self.shared.lane.lock();
        self.shared.wanted.fetch_sub(1, Ordering::SeqCst);
        let Ok(mut lane) = locked else {
            return Err(Broken(self.failure().unwrap_or_else(|| "the lane is broken".into())));
        };
        match catch_unwind(AssertUnwindSafe(|| work(&mut lane))) {
            Ok(value) => Ok(value),
            Err(panic) => {
                let said = self.shared.note_failure(&*panic);
                drop(lane);
                self.shared.is_stopping.store(true, Ordering::SeqCst);
                Err(Broken(said))
            }
        }
    }

    /// The same though the lane is broken: to look at, no more.
    pub fn with_any_lane<T>(&self, work: impl FnOnce(&mut Lane) -> T) -> T {
        self.shared.wanted.fetch_add(1, Ordering::SeqCst);
        let mut lane = self.shared.lane.lock().unwrap_or_else(PoisonError::into_inner);
        self.shared.wanted.fetch_sub(1, Ordering::SeqCst);
        work(&mut lane)
    }
}

impl Drop for Engine {
    fn drop(&mut self) {
        self.stop();
    }
}

impl Shared {
    fn note_failure(&self, panic: &(dyn std::any::Any + Send)) -> String {
        let said = panic.downcast_ref::<&str>().map(|said| (*said).to_owned());
        let said = said.or_else(|| panic.downcast_ref::<String>().cloned());
        let said = said.unwrap_or_else(|| "no reason given".into());
        *self.failure.lock().unwrap_or_else(PoisonError::into_inner) = Some(said.clone());
        self.bell.ring();
        said
    }

    fn run(&self) {
        if let Err(panic) = catch_unwind(AssertUnwindSafe(|| self.turn_until_stopped())) {
            self.note_failure(&*panic);
        }
    }

    fn turn_until_stopped(&self) {
        let mut tokens = vec![];
        let mut patience = Patience::default();
        while !self.is_stopping.load(Ordering::Relaxed) {
            self.waiter.wait(&mut tokens, patience.sleeps());
            if self.turn(&tokens) {
                patience.worked(sys::now());
            } else {
                patience.idled(sys::now());
                sys::yield_core();
            }
        }
    }

    /// One turn; whether there was anything to do.
    fn turn(&self, tokens: &[u64]) -> bool {
        if tokens.is_empty() {
            return false;
        }
        // Somebody who waits for the lane gets it between two turns; a mutex alone would let us have it again.
        while self.wanted.load(Ordering::SeqCst) > 0 {
            sys::yield_core();
        }
        let Ok(mut lane) = self.lane.lock() else { return false };
        let now = sys::now();
        let mut done = 0;
        for token in tokens {
            done += match Token::of(*token) {
                Token::Wake => {
                    self.wake.silence();
                    assert!(!self.is_to_break.load(Ordering::Relaxed), "broken on purpose");
                    0
                }
                Token::Device(network) => lane.drain_device(network, now),
                Token::Port(port) => lane.drain_port(port, now),
            };
        }
        done > 0
    }
}

/// Whether it pays to poll before sleeping.
#[derive(Default)]
struct Patience {
    score: i32,
    worked_at: f64,
    has_worked: bool,
    polls: bool,
}

impl Patience {
    fn sleeps(&self) -> bool {
        !self.has_worked && !self.polls
    }

    fn worked(&mut self, now: f64) {
        if !self.has_worked {
            let came_soon = now - self.worked_at <= POLL_SECONDS;
            self.score =
                if came_soon { (self.score + SCORE_HIT).min(SCORE_MAX) } else { (self.score - 1).max(0) };
        }
        (self.worked_at, self.has_worked) = (now, true);
    }

    fn idled(&mut self, now: f64) {
        self.has_worked = false;
        self.polls = self.score > 0 && now - self.worked_at < POLL_SECONDS;
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    const BOUNDS: Bounds = Bounds { send_segments: 63, write_segments: 64 };

    #[test]
    fn a_panic_is_told_and_the_lane_stays_shut() {
        let engine = Engine::new(BOUNDS).unwrap();
        engine.start().unwrap();
        assert_eq!(engine.with_lane(|lane| lane.book.received).unwrap(), 0);
        engine.break_on_purpose();
        let waiter = Waiter::new().unwrap();
        waiter.watch(engine.bell().fd(), 1).unwrap();
        waiter.wait(&mut vec![], true);
        assert_eq!(engine.failure().as_deref(), Some("broken on purpose"));
        assert!(engine.with_lane(|_| ()).is_err());
        assert_eq!(engine.with_any_lane(|lane| lane.book.received), 0);
        engine.stop();
    }

    #[test]
    fn a_panic_of_the_loop_threads_is_told_too() {
        let engine = Engine::new(BOUNDS).unwrap();
        engine.start().unwrap();
        let broken = engine.with_lane(|_| -> () { panic!("a bug") }).unwrap_err();
        assert_eq!(broken.0, "a bug");
        engine.stop();
    }

    #[test]
    fn polling_stops_paying_when_work_comes_late() {
        let mut patience = Patience::default();
        for round in 1..10 {
            patience.worked(f64::from(round) * 1e-4);
            patience.idled(f64::from(round) * 1e-4 + 1e-6);
        }
        assert!(!patience.sleeps());
        for round in 1..40 {
            patience.worked(f64::from(round));
            patience.idled(f64::from(round) + 1e-6);
        }
        assert!(patience.sleeps());
    }
}
