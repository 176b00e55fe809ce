//! Workers: each one thread for both directions, run to completion, off the interpreter's lock.
//!
//! ```text
//! drain both directions ─▶ nothing there? poll a while, giving the core away ─▶ sleep until something comes
//!         └ a flood, and cores are short: nap    ├ in bulk: nap between             │
//!                                                └ cores are short ─────────────────┘
//! ```
//!
//! Each has a lane of its own: its queue of every device, its socket of every port, its flows.  The kernel gives each
//! direction of a flow to one queue or socket, so it is on one thread, and what lanes share is limits (`limits.rs`).
//!
//! Waking another core costs a few microseconds on one machine and fifty on another; a thread that polls for a bounded
//! time with `sched_yield` between is not asleep when the answer comes.  Whether that pays is learnt from the recent
//! past: work that came within the time a poll covers speaks for it, work that came later against.
//!
//! A thread that of late has waited for a core does not poll: the scheduler owes it its fair share even if it gives the
//! core away, so it would keep half of one from whoever has work there.  Who sleeps is woken and waits for a core then,
//! if only for a moment; so the thread doubts its finding now and then, and polls for as long as that takes to be found
//! again.
//!
//! Where long runs arrive, a single one can wait: the thread naps instead of giving the core away.  It need not
//! be woken, the run is longer when it comes back, and the scheduler sees a core that is free for others.
//! Super-packets make no naps, for they get no longer, and long frames from a device neither: whoever sends them is on
//! this host, and stops when nobody takes them.
//!
//! Who floods a device with short frames does not stop, for the kernel drops what nobody takes.  To carry all there is
//! would leave no core, where they are short, to the programs that shall read what comes out at the other end, whose
//! buffers then overflow.  So after a turn of many frames the thread naps too, if cores are short; and after one in
//! which a port brought much of UDP.
//!
//! A panic ends every worker, marks the lane as broken, and rings the bell: the loop thread brings the daemon to an end
//! that is explained.
//!
//! Over 500 lines: when a thread works, polls, naps and sleeps is one question, and its tests stand beside it.

use std::mem;
use std::panic::{AssertUnwindSafe, catch_unwind};
use std::sync::atomic::{AtomicBool, AtomicUsize, Ordering};
use std::sync::{Arc, Mutex, PoisonError};
use std::thread::JoinHandle;
use std::time::Duration;

use crate::bucket::Meter;
use crate::lane::{Bounds, Lane, Token, Work};
use crate::limits::Shared;
use crate::sys::{self, Bell, CoreWaits, Waiter};

/// How long it is polled for: covers request and response at some thousands a second.
const POLL_SECONDS: f64 = 0.001_2;
/// In bulk the rate is less with 30 µs, and no more with 100 to 300; in a flood 30 to 100 do the same
/// (docs/performance.md).
const NAP: Duration = Duration::from_micros(60);
/// Of the time, waited for a core: so much, and cores are short.
const SHORT: f64 = 1.0 / 16.0;
/// Whether they are is looked for so often …
const SHORTAGE_SECONDS: f64 = 0.01;
/// … and not believed more often in a row.
const FOUND_IN_A_ROW: u32 = 50;
/// Octets of runs an arrival, on average: so much is bulk.
const BULK_OCTETS: usize = 16 << 10;
const SCORE_MAX: i32 = 16;
const SCORE_HIT: i32 = 4;

/// Lanes, a worker for each, and the bells between them and the loop thread.
pub struct Engine {
    workers: Vec<Arc<Worker>>,
    house: Arc<House>,
    threads: Mutex<Vec<JoinHandle<()>>>,
}

/// What all workers of an engine share.
struct House {
    is_stopping: AtomicBool,
    wakes: Vec<Arc<Bell>>,
    bell: Arc<Bell>,
    failure: Mutex<Option<String>>,
    is_to_break: AtomicBool,
}

struct Worker {
    lane: Mutex<Lane>,
    /// How many others want the lane.
    wanted: AtomicUsize,
    waiter: Arc<Waiter>,
    wake: Arc<Bell>,
    house: Arc<House>,
}

/// The engine broke: what it said.
#[derive(Debug)]
pub struct Broken(pub String);

impl Engine {
    /// One with so many workers, at least one.  It carries nothing yet, and they are not started.
    pub fn new(bounds: Bounds, workers: usize) -> std::io::Result<Engine> {
        let wakes = (0..workers.max(1)).map(|_| Bell::new().map(Arc::new));
        let house = Arc::new(House {
            is_stopping: AtomicBool::new(false),
            wakes: wakes.collect::<std::io::Result<_>>()?,
            bell: Arc::new(Bell::new()?),
            failure: Mutex::new(None),
            is_to_break: AtomicBool::new(false),
        });
        let meter = Shared::new(Meter::new(sys::now()));
        let new = |wake: &Arc<Bell>| Worker::new(wake, &house, meter.clone(), bounds).map(Arc::new);
        let workers = house.wakes.iter().map(new).collect::<std::io::Result<_>>()?;
        Ok(Engine { workers, house, threads: Mutex::new(vec![]) })
    }

    /// Starts the workers, each pinned to its core, if it has one.
    pub fn start(&self, cores: &[usize]) -> std::io::Result<()> {
        for (number, worker) in self.workers.iter().enumerate() {
            let worker = worker.clone();
            let thread = std::thread::Builder::new().name("weft-lane".into()).spawn(move || worker.run())?;
            let pinned = cores.get(number).map_or(Ok(()), |core| sys::pin(&thread, *core));
            self.threads.lock().unwrap_or_else(PoisonError::into_inner).push(thread);
            pinned?;
        }
        Ok(())
    }

    /// Stops the workers and waits for them.  Idempotent.
    pub fn stop(&self) {
        self.house.stop();
        let threads = std::mem::take(&mut *self.threads.lock().unwrap_or_else(PoisonError::into_inner));
        for thread in threads {
            let _ = thread.join(); // its panic was noted
        }
    }

    /// One turn of each on this thread, for an engine that was not started; whether there was anything to do.
    pub fn turn_once(&self) -> bool {
        let mut tokens = vec![];
        let turn = |worker: &Arc<Worker>| {
            worker.waiter.wait(&mut tokens, false);
            !worker.turn(&tokens).is_idle()
        };
        self.workers.iter().map(turn).fold(false, |any, did| any | did)
    }

    /// How many lanes there are.
    pub fn lanes(&self) -> usize {
        self.workers.len()
    }

    /// Readable when there are questions, notices, frames to show, or a failure.
    pub fn bell(&self) -> &Bell {
        &self.house.bell
    }

    /// What the engine said when it broke.
    pub fn failure(&self) -> Option<String> {
        self.house.failure()
    }

    /// Makes the last worker panic at its next turn.  For tests of what comes then.
    pub fn break_on_purpose(&self) {
        self.house.is_to_break.store(true, Ordering::SeqCst);
        if let Some(wake) = self.house.wakes.last() {
            wake.ring();
        }
    }

    /// Does something with one lane, its worker held off: at most for the rest of its turn are we.
    pub fn with_lane<T>(&self, number: usize, work: impl FnOnce(&mut Lane) -> T) -> Result<T, Broken> {
        let worker = &self.workers[number];
        worker.wanted.fetch_add(1, Ordering::SeqCst);
        worker.with_lane(work)
    }

    /// Does something with each lane in turn, those beside a broken one too.
    pub fn with_each_lane<T>(&self, mut work: impl FnMut(&mut Lane) -> T) -> Result<Vec<T>, Broken> {
        for worker in &self.workers {
            worker.wanted.fetch_add(1, Ordering::SeqCst); // their turns end while we are at the first
        }
        let said: Vec<_> = self.workers.iter().map(|worker| worker.with_lane(&mut work)).collect();
        said.into_iter().collect()
    }

    /// Looks at each lane in turn, or takes something out of it, though one may be broken.
    pub fn look_at_each_lane<T>(&self, mut work: impl FnMut(&mut Lane) -> T) -> Vec<T> {
        let look = |worker: &Arc<Worker>| {
            worker.wanted.fetch_add(1, Ordering::SeqCst);
            let mut lane = worker.lane.lock().unwrap_or_else(PoisonError::into_inner);
            worker.wanted.fetch_sub(1, Ordering::SeqCst);
            work(&mut lane)
        };
        self.workers.iter().map(look).collect()
    }
}

impl Drop for Engine {
    fn drop(&mut self) {
        self.stop();
    }
}

impl House {
    fn stop(&self) {
        self.is_stopping.store(true, Ordering::SeqCst);
        for wake in &self.wakes {
            wake.ring();
        }
    }

    /// One worker broke: none goes on, for what is changed from now on does not reach its lane.
    fn break_down(&self, panic: &(dyn std::any::Any + Send)) -> Broken {
        let said = panic.downcast_ref::<&str>().map(|said| (*said).to_owned());
        let said = said.or_else(|| panic.downcast_ref::<String>().cloned());
        let said = said.unwrap_or_else(|| "no reason given".into());
        let mut failure = self.failure.lock().unwrap_or_else(PoisonError::into_inner);
        let first = failure.get_or_insert(said).clone();
        self.stop();
        self.bell.ring();
        Broken(first)
    }

    fn failure(&self) -> Option<String> {
        self.failure.lock().unwrap_or_else(PoisonError::into_inner).clone()
    }
}

impl Worker {
    fn new(
        wake: &Arc<Bell>,
        house: &Arc<House>,
        meter: Shared<Meter>,
        bounds: Bounds,
    ) -> std::io::Result<Worker> {
        let waiter = Arc::new(Waiter::new()?);
        waiter.watch(wake.fd(), Token::Wake.number())?;
        let lane = Mutex::new(Lane::new(waiter.clone(), house.bell.clone(), meter, bounds));
        Ok(Worker { lane, wanted: AtomicUsize::new(0), waiter, wake: wake.clone(), house: house.clone() })
    }

    /// Does something with the lane, which its caller has said is wanted.  A panic in it leaves the lane shut.
    fn with_lane<T>(&self, work: impl FnOnce(&mut Lane) -> T) -> Result<T, Broken> {
        let worked = catch_unwind(AssertUnwindSafe(|| {
            let locked = self.lane.lock();
            self.wanted.fetch_sub(1, Ordering::SeqCst);
            locked.ok().map(|mut lane| work(&mut lane))
        }));
        match worked {
            Ok(Some(value)) => Ok(value),
            Ok(None) => Err(Broken(self.house.failure().unwrap_or_else(|| "the lane is broken".into()))),
            Err(panic) => Err(self.house.break_down(&*panic)),
        }
    }

    fn run(&self) {
        if let Err(panic) = catch_unwind(AssertUnwindSafe(|| self.turn_until_stopped())) {
            self.house.break_down(&*panic);
        }
    }

    fn turn_until_stopped(&self) {
        let mut tokens = vec![];
        let mut patience = Patience::default();
        let mut shortage = Shortage::default();
        let waits = CoreWaits::open().ok();
        sys::sleep_precisely();
        while !self.house.is_stopping.load(Ordering::Relaxed) {
            self.waiter.wait(&mut tokens, patience.sleeps());
            let work = self.turn(&tokens);
            let now = sys::now();
            let is_short = shortage.look(now, || waits.as_ref()?.seconds().ok());
            let naps = if work.is_idle() {
                patience.idled(now, is_short);
                patience.naps()
            } else {
                patience.worked(work, now);
                is_short && work.is_flooded
            };
            if naps {
                std::thread::sleep(NAP);
            } else if work.is_idle() && patience.polls {
                sys::yield_core();
            }
        }
    }

    /// One turn.
    fn turn(&self, tokens: &[u64]) -> Work {
        let mut work = Work::default();
        if tokens.is_empty() {
            return work;
        }
        // Somebody who waits for the lane gets it between two turns; a mutex alone would let us have it again.
        while self.wanted.load(Ordering::SeqCst) > 0 {
            sys::yield_core();
        }
        let Ok(mut lane) = self.lane.lock() else { return work };
        if self.house.is_stopping.load(Ordering::SeqCst) {
            return work; // whoever stopped it closes what is read here
        }
        let now = sys::now();
        for token in tokens {
            work += match Token::of(*token) {
                Token::Wake => {
                    self.wake.silence();
                    assert!(!self.house.is_to_break.swap(false, Ordering::Relaxed), "broken on purpose");
                    Work::default()
                }
                Token::Device(network) => lane.drain_device(network, now),
                Token::Port(port) => lane.drain_port(port, now),
            };
        }
        work
    }
}

/// Whether it pays to poll before sleeping.
#[derive(Default)]
struct Patience {
    score: i32,
    worked_at: f64,
    has_worked: bool,
    polls: bool,
    run_octets: usize, // of an arrival, on average
}

impl Patience {
    fn sleeps(&self) -> bool {
        !self.has_worked && !self.polls
    }

    fn naps(&self) -> bool {
        self.polls && self.is_in_bulk()
    }

    fn worked(&mut self, work: Work, now: f64) {
        match work.run_octets.checked_div(work.arrivals) {
            Some(octets) => self.run_octets = (self.run_octets * 7 + octets) / 8,
            None => self.run_octets -= self.run_octets / 64, // who hears nothing for long is not in bulk
        }
        if !self.has_worked {
            let came_soon = now - self.worked_at <= POLL_SECONDS;
            self.score =
                if came_soon { (self.score + SCORE_HIT).min(SCORE_MAX) } else { (self.score - 1).max(0) };
        }
        (self.worked_at, self.has_worked) = (now, true);
    }

    fn idled(&mut self, now: f64, is_short: bool) {
        self.has_worked = false;
        let pays = self.score > 0 && now - self.worked_at < POLL_SECONDS;
        self.polls = pays && (self.is_in_bulk() || !is_short);
    }

    fn is_in_bulk(&self) -> bool {
        self.run_octets > BULK_OCTETS
    }
}

/// Whether cores are short: this thread had to wait for one.
#[derive(Default)]
struct Shortage {
    /// How often it was found, look after look.
    in_a_row: u32,
    looked_at: f64,
    /// Seconds, as of then; None: not known.
    waited: Option<f64>,
}

impl Shortage {
    /// Whether cores are short.  `waited` gives the seconds the thread has waited so far; None: that is not known
    /// here, and they are not.
    fn look(&mut self, now: f64, waited: impl FnOnce() -> Option<f64>) -> bool {
        let passed = now - self.looked_at;
        if passed >= SHORTAGE_SECONDS {
            let before = mem::replace(&mut self.waited, waited());
            let is_found =
                before.zip(self.waited).is_some_and(|(before, after)| after - before > SHORT * passed);
            self.in_a_row = if is_found && self.in_a_row < FOUND_IN_A_ROW { self.in_a_row + 1 } else { 0 };
            self.looked_at = now;
        }
        self.in_a_row > 0
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    const BOUNDS: Bounds = Bounds { send_segments: 63, write_segments: 64 };

    #[test]
    fn a_panic_is_told_and_the_lane_stays_shut() {
        let engine = Engine::new(BOUNDS, 2).unwrap();
        engine.start(&[]).unwrap();
        assert_eq!(engine.with_each_lane(|lane| lane.book.received).unwrap(), [0, 0]);
        engine.break_on_purpose();
        let waiter = Waiter::new().unwrap();
        waiter.watch(engine.bell().fd(), 1).unwrap();
        waiter.wait(&mut vec![], true);
        assert_eq!(engine.failure().as_deref(), Some("broken on purpose"));
        assert!(engine.with_each_lane(|_| ()).is_err());
        assert!(engine.with_lane(1, |_| ()).is_err());
        let mut reached = 0;
        assert!(engine.with_each_lane(|_| reached += 1).is_err());
        assert_eq!(reached, 1, "the other lane is changed all the same");
        assert_eq!(engine.look_at_each_lane(|lane| lane.book.received), [0, 0]);
        assert!(!engine.turn_once(), "no worker goes on");
        engine.stop();
    }

    #[test]
    fn a_worker_is_pinned_where_there_is_such_a_core() {
        let core = crate::testing::usable_core();
        let engine = Engine::new(BOUNDS, 1).unwrap();
        engine.start(&[core]).unwrap();
        engine.stop();
        for absent in [1023, libc::CPU_SETSIZE as usize, usize::MAX] {
            let engine = Engine::new(BOUNDS, 1).unwrap();
            assert_eq!(engine.start(&[absent]).unwrap_err().raw_os_error(), Some(libc::EINVAL));
            engine.stop();
        }
    }

    #[test]
    fn a_panic_of_the_loop_threads_is_told_too() {
        let engine = Engine::new(BOUNDS, 1).unwrap();
        engine.start(&[]).unwrap();
        let broken = engine.with_lane(0, |_| -> () { panic!("a bug") }).unwrap_err();
        assert_eq!(broken.0, "a bug");
        assert!(engine.with_lane(0, |_| ()).is_err(), "what was half changed stays shut");
        engine.stop();
    }

    #[test]
    fn polling_stops_paying_when_work_comes_late() {
        let mut patience = Patience::default();
        for round in 1..10 {
            patience.worked(arrival(100), f64::from(round) * 1e-4);
            patience.idled(f64::from(round) * 1e-4 + 1e-6, false);
        }
        assert!(!patience.sleeps());
        for round in 1..40 {
            patience.worked(arrival(100), f64::from(round));
            patience.idled(f64::from(round) + 1e-6, false);
        }
        assert!(patience.sleeps());
    }

    #[test]
    fn runs_that_arrive_are_napped_through_and_nothing_else_is() {
        let mut patience = Patience::default();
        let mut round = 0.0;
        let mut naps = |work| {
            round += 1e-4;
            patience.worked(work, round);
            patience.idled(round + 1e-6, false);
            patience.naps()
        };
        let frames = Work { frames: 64, ..Work::default() };
        assert!((0..20).all(|_| !naps(arrival(1500))));
        assert!((0..20).all(|_| !naps(frames)));
        assert_eq!((0..20).map(|_| naps(arrival(64 << 10))).last(), Some(true));
        assert!((0..20).all(|_| naps(frames)), "acknowledgements are sent between");
        assert!((0..200).any(|_| !naps(frames)), "nothing arrives any more");
        assert!((0..20).any(|_| naps(arrival(64 << 10))));
        assert!((0..20).any(|_| !naps(arrival(1500))));
        assert!(!naps(arrival(1500)));
    }

    #[test]
    fn a_nap_is_for_who_would_poll() {
        let mut patience = Patience::default();
        for round in 0..9 {
            patience.worked(arrival(64 << 10), f64::from(round) * 1e-4);
        }
        patience.idled(9e-4, true);
        assert!(patience.naps(), "it gives the core to whoever wants it");
        patience.idled(9e-4 + POLL_SECONDS, true);
        assert!(!patience.naps() && patience.sleeps());
    }

    #[test]
    fn who_has_waited_for_a_core_does_not_poll() {
        let mut patience = Patience::default();
        for (is_short, sleeps) in [(false, false), (true, true), (false, false)] {
            patience.worked(arrival(100), 1e-4);
            patience.idled(1e-4, is_short);
            assert_eq!(patience.sleeps(), sleeps);
        }
    }

    #[test]
    fn cores_are_short_where_they_are_waited_for() {
        let mut shortage = Shortage::default();
        let mut look = |now, waited| shortage.look(now, || waited);
        assert!(!look(100.0, Some(50.0)), "in all the time before");
        assert!(!look(100.1, Some(50.001)), "a hundredth");
        assert!(look(100.2, Some(50.011)), "a tenth");
        assert!(look(100.205, None), "looked for too often");
        assert!(!look(100.3, Some(50.011)));
        assert!(!look(100.4, None), "it is not known");
        assert!(!look(100.5, Some(50.1)), "nor since when");
        assert!(look(100.6, Some(50.2)));
        assert!(!look(100.7, Some(50.2)));
        let seconds = (101..201).map(f64::from);
        let found: Vec<_> = seconds.map(|second| look(second, Some(second))).collect();
        assert_eq!(
            found,
            [[true; 50].as_slice(), &[false], &[true; 49]].concat(),
            "now and then it is doubted"
        );
    }

    fn arrival(run_octets: usize) -> Work {
        Work { arrivals: 1, run_octets, ..Work::default() }
    }
}
