//! `tunnel._native`: the engine's door to Python.
//! Over 500 lines: a Python class has one block of methods, and each of them is a line or two.
//!
//! Numbers and octets go in and come out; the words for them stand in `tunnel.nativedatapath`.  Every call lets go of
//! the interpreter's lock before it waits for a lane's, which its worker gives up between two turns.
//!
//! A broken engine (a panic, anywhere in it) does nothing more and says so through its bell, once: calls that would
//! change it then answer as if they had, since whoever hears the bell ends the daemon.

#![deny(unsafe_op_in_unsafe_fn, clippy::undocumented_unsafe_blocks)]

use pyo3::prelude::*;

/// The native engine.
#[pymodule]
mod _native {
    use std::collections::BTreeMap;
    use std::iter;
    use std::sync::atomic::{AtomicUsize, Ordering};

    use pyo3::exceptions::PyValueError;
    use pyo3::prelude::*;
    use pyo3::types::{PyBytes, PyTuple};
    use weft_core::flows::{FlowTable, Key, Verdict};
    use weft_core::lane::{Book, Bounds, Device, Drops, Lane, NetworkSettings, Traffic};
    use weft_core::limits::NetworkLimits;
    use weft_core::packet::Subnet;
    use weft_core::reason::{REASONS_MAX, Reason};
    use weft_core::super_packet::{Hop, SuperDoor};
    use weft_core::sys::{self, Address};
    use weft_core::upcalls::{Answer, Memory, Notice};
    use weft_core::worker::Engine as Core;

    const DELIVER: u8 = 0;
    const ENCAPSULATE: u8 = 1;
    const REPLICATE: u8 = 2;
    const DROP: u8 = 3;
    /// The lane of what any lane may do.
    const ANY: usize = 0;

    type FlowRow<'py> = (Bound<'py, PyBytes>, u8, u32, u64, u64, f64);
    type QuestionRow<'py> = (u64, u32, Option<u32>, Bound<'py, PyBytes>);
    type ShownRow<'py> = (u8, Option<u32>, Bound<'py, PyBytes>, Option<u8>);
    type HopRow = ([u8; 6], [u8; 6], bool, Vec<u8>, Vec<u8>, u16, Vec<u16>);
    type Counts = Vec<(u8, u64)>;
    type DropsRow = (Option<u32>, Counts);
    type VtepRow = (u32, u64, u64, u64, u64, Counts);

    #[pymodule_init]
    fn init(module: &Bound<'_, PyModule>) -> PyResult<()> {
        module.add("REASONS", PyTuple::new(module.py(), Reason::NAMES)?)?;
        module.add("REASONS_MAX", REASONS_MAX)
    }

    /// How many datagrams one send may carry on this kernel.
    #[pyfunction]
    fn segments_max() -> usize {
        sys::segments_max()
    }

    /// Lanes with their workers.
    ///
    /// What is programmed is programmed into each, so a network, VTEP or port has the same number in all.  A question's
    /// number tells its lane as well.
    #[pyclass(frozen)]
    struct Engine {
        core: Core,
        /// How often was asked for a question: the lanes take turns.
        asked: AtomicUsize,
    }

    impl Engine {
        /// Changes each lane; what they all said, the default where one is broken.
        fn change<T: Send + Default>(&self, py: Python<'_>, work: impl FnMut(&mut Lane) -> T + Send) -> T {
            py.detach(|| {
                self.core.with_each_lane(work).ok().and_then(|mut said| said.pop()).unwrap_or_default()
            })
        }

        /// The same where the kernel may refuse one of them something.
        fn try_change(
            &self,
            py: Python<'_>,
            work: impl FnMut(&mut Lane) -> std::io::Result<()> + Send,
        ) -> PyResult<()> {
            let said = py.detach(|| self.core.with_each_lane(work).unwrap_or_default());
            Ok(said.into_iter().collect::<std::io::Result<()>>()?)
        }

        /// Changes one of them.
        fn change_one<T: Send + Default>(
            &self,
            py: Python<'_>,
            lane: usize,
            work: impl FnOnce(&mut Lane) -> T + Send,
        ) -> T {
            py.detach(|| self.core.with_lane(lane, work).unwrap_or_default())
        }

        /// Looks at each lane, or takes something out of it, broken or not.
        fn look<T: Send>(&self, py: Python<'_>, work: impl FnMut(&mut Lane) -> T + Send) -> Vec<T> {
            py.detach(|| self.core.look_at_each_lane(work))
        }

        /// A question's lane, and its number there.
        fn lane_of(&self, question: u64) -> (usize, u64) {
            let lanes = self.core.lanes() as u64;
            ((question % lanes) as usize, question / lanes)
        }
    }

    #[pymethods]
    impl Engine {
        #[new]
        #[pyo3(signature = (send_segments, write_segments, workers=1))]
        fn new(send_segments: usize, write_segments: usize, workers: usize) -> PyResult<Engine> {
            let core = Core::new(Bounds { send_segments, write_segments }, workers)?;
            Ok(Engine { core, asked: AtomicUsize::new(0) })
        }

        #[pyo3(signature = (cores=vec![]))]
        fn start(&self, cores: Vec<usize>) -> PyResult<()> {
            Ok(self.core.start(&cores)?)
        }

        fn stop(&self, py: Python<'_>) {
            py.detach(|| self.core.stop());
        }

        fn turn(&self, py: Python<'_>) -> bool {
            py.detach(|| self.core.turn_once())
        }

        fn fileno(&self) -> i32 {
            self.core.bell().fd()
        }

        fn ring(&self) {
            self.core.bell().ring();
        }

        fn silence(&self) {
            self.core.bell().silence();
        }

        fn failure(&self) -> Option<String> {
            self.core.failure()
        }

        fn break_on_purpose(&self) {
            self.core.break_on_purpose();
        }

        // Networks come and go.

        fn add_network(
            &self,
            py: Python<'_>,
            vni: Option<u32>,
            is_strict: bool,
            suppresses: bool,
            repairs: bool,
        ) -> u32 {
            let settings = NetworkSettings { vni, is_strict, suppresses, repairs };
            let (limits, now) = (NetworkLimits::new(sys::now()), sys::now());
            self.change(py, |lane| lane.add_network(settings, limits.clone(), now))
        }

        fn remove_network(&self, py: Python<'_>, network: u32) {
            self.change(py, |lane| lane.remove_network(network));
        }

        /// A queue for each lane; where there are fewer, the other lanes write to them and hear nothing.
        fn use_device(
            &self,
            py: Python<'_>,
            network: u32,
            queues: Vec<i32>,
            overlay_mtu: usize,
            merges_udp: bool,
        ) -> PyResult<()> {
            let mut lanes = 0..;
            self.try_change(py, |lane| {
                let number = lanes.next().unwrap_or_default();
                let fd = queues.get(number % queues.len().max(1)).copied().unwrap_or(-1);
                let is_heard = number < queues.len();
                lane.use_device(network, Device { fd, is_heard, overlay_mtu, merges_udp })
            })
        }

        /// A pool for each lane, or one that they share.
        fn add_underlay(&self, py: Python<'_>, pools: Vec<Vec<i32>>, has_gso: bool) -> u32 {
            let mut pools = pools.iter().cycle();
            self.change(py, |lane| lane.add_underlay(pools.next().cloned().unwrap_or_default(), has_gso))
        }

        fn use_gso(&self, py: Python<'_>, underlay: u32, has_gso: bool) {
            self.change(py, |lane| {
                if let Some(underlay) = lane.underlays.get_mut(underlay as usize) {
                    underlay.has_gso = has_gso;
                }
            });
        }

        /// A socket for each lane, which may be the only sender of an underlay as well.
        #[pyo3(signature = (sockets, sends_for=None))]
        fn add_port(&self, py: Python<'_>, sockets: Vec<i32>, sends_for: Option<u32>) -> u32 {
            let mut sockets = sockets.into_iter();
            self.change(py, |lane| lane.add_port(sockets.next().unwrap_or(-1), sends_for))
        }

        fn remove_port(&self, py: Python<'_>, port: u32) {
            self.change(py, |lane| lane.remove_port(port));
        }

        fn bind(&self, py: Python<'_>, port: u32, vni: u32, network: u32) -> PyResult<()> {
            self.try_change(py, |lane| lane.bind(port, vni, network))
        }

        // What the tables say.

        fn add_vtep(&self, py: Python<'_>, network: u32, address: &[u8], port: u16) -> PyResult<u32> {
            let address = parse(address, port, 0)?;
            Ok(self.change(py, |lane| lane.add_vtep(network, address)))
        }

        #[allow(clippy::too_many_arguments)] // where a VTEP is and what its path carries
        fn route_vtep(
            &self,
            py: Python<'_>,
            vtep: u32,
            address: &[u8],
            port: u16,
            scope: u32,
            underlay: Option<u32>,
            frame_max: usize,
        ) -> PyResult<()> {
            let address = parse(address, port, scope)?;
            self.change(py, |lane| lane.route_vtep(vtep, address, underlay, frame_max));
            Ok(())
        }

        fn limit_path(&self, py: Python<'_>, vtep: u32, frame_max: usize) {
            self.change(py, |lane| lane.limit_path(vtep, frame_max));
        }

        fn use_door(&self, py: Python<'_>, vtep: u32, tap: i32, hop: HopRow) -> PyResult<()> {
            let (source_mac, destination_mac, has_checksum, source, destination, port, source_ports) = hop;
            let hop =
                Hop { source_mac, destination_mac, has_checksum, source, destination, port, source_ports };
            let mut doors = SuperDoor::open(tap, &hop, self.core.lanes())?;
            self.change(py, |lane| lane.use_door(vtep, doors.pop()));
            Ok(())
        }

        fn without_door(&self, py: Python<'_>, vtep: u32) {
            self.change(py, |lane| lane.use_door(vtep, None));
        }

        fn suspend(&self, py: Python<'_>, underlay: u32) {
            self.change(py, |lane| lane.suspend(underlay));
        }

        fn take_use(&self, py: Python<'_>, underlay: u32) -> bool {
            self.look(py, |lane| lane.take_use(underlay)).contains(&true)
        }

        fn withdraw_vtep(&self, py: Python<'_>, vtep: u32) {
            self.change(py, |lane| lane.withdraw_vtep(vtep));
        }

        fn program_subnets(&self, py: Python<'_>, network: u32, subnets: Vec<Subnet>) {
            self.change(py, |lane| lane.program_subnets(network, subnets.clone()));
        }

        fn program_flood(&self, py: Python<'_>, network: u32, vteps: Vec<u32>) {
            self.change(py, |lane| lane.program_flood(network, vteps.clone()));
        }

        fn forget(&self, py: Python<'_>, places: Vec<Vec<u8>>) {
            self.change(py, |lane| lane.forget(&places));
        }

        // Upcalls.

        /// The lanes take turns: none is kept waiting by what another asks.
        fn next_question<'py>(&self, py: Python<'py>) -> Option<QuestionRow<'py>> {
            let lanes = self.core.lanes();
            let first = self.asked.fetch_add(1, Ordering::Relaxed);
            let mut turns = (0..lanes).map(|further| first.wrapping_add(further) % lanes);
            let asked = |lane| Some((lane, self.change_one(py, lane, Lane::next_question)?));
            let (lane, (number, network, vtep, frame)) = turns.find_map(asked)?;
            Some((number * lanes as u64 + lane as u64, network, vtep, PyBytes::new(py, &frame)))
        }

        fn answer<'py>(
            &self,
            py: Python<'py>,
            question: u64,
            verdict: (u8, u32),
            memory: Option<(Key, f64, Vec<Vec<u8>>)>,
        ) -> PyResult<Option<Bound<'py, PyBytes>>> {
            let answer = Answer::Verdict(decided(verdict)?);
            let (lane, number) = self.lane_of(question);
            let next = self.change_one(py, lane, |lane| {
                let memory = memory.as_ref().map(|(key, expires_at, places)| Memory {
                    key: *key,
                    expires_at: *expires_at,
                    places,
                });
                lane.answer(number, &answer, memory, sys::now())
            });
            Ok(next.map(|frame| PyBytes::new(py, &frame)))
        }

        fn reply<'py>(&self, py: Python<'py>, question: u64, frame: Vec<u8>) -> Option<Bound<'py, PyBytes>> {
            let answer = Answer::Reply(frame);
            let (lane, number) = self.lane_of(question);
            let next = self.change_one(py, lane, |lane| lane.answer(number, &answer, None, sys::now()));
            next.map(|frame| PyBytes::new(py, &frame))
        }

        fn notices<'py>(&self, py: Python<'py>) -> PyResult<Vec<Bound<'py, PyTuple>>> {
            let row = |notice: Notice| match notice {
                Notice::TooBig { vtep, frame, is_answered, is_news } => {
                    ("too-big", vtep, PyBytes::new(py, &frame), is_answered, is_news).into_pyobject(py)
                }
                Notice::IcmpErrors { underlay } => ("icmp-errors", underlay).into_pyobject(py),
                Notice::WantsDoor { vtep } => ("wants-door", vtep).into_pyobject(py),
                Notice::ShutDoor { vtep, errno, is_socket } => {
                    ("shut-door", vtep, errno, is_socket).into_pyobject(py)
                }
                Notice::Refused { network, vtep, reason, frame } => {
                    ("refused", network, vtep, reason.0, PyBytes::new(py, &frame)).into_pyobject(py)
                }
                Notice::NoSegmentation { underlay, errno } => {
                    ("no-segmentation", underlay, errno).into_pyobject(py)
                }
            };
            self.look(py, Lane::take_notices).into_iter().flatten().map(row).collect()
        }

        fn write_own(&self, py: Python<'_>, network: u32, frame: Vec<u8>) {
            self.change_one(py, ANY, |lane| {
                lane.book.generated += 1;
                lane.write_own(network, &frame);
            });
        }

        fn answered(&self, py: Python<'_>, network: u32, packet: Vec<u8>, is_taken: bool) {
            self.change_one(py, ANY, |lane| lane.answered(network, &packet, is_taken));
        }

        fn send_own(&self, py: Python<'_>, vtep: u32, packet: Vec<u8>) {
            self.change_one(py, ANY, |lane| lane.send_own(vtep, &packet));
        }

        // Every second.

        fn expire(&self, py: Python<'_>, now: f64) {
            self.change(py, |lane| lane.expire(now));
        }

        fn lost_before(&self, py: Python<'_>, reason: u8, network: Option<u32>, frames: u64) {
            self.change_one(py, ANY, |lane| lane.lost_before(Reason(reason), network, frames));
        }

        fn lost_after(
            &self,
            py: Python<'_>,
            reason: u8,
            network: Option<u32>,
            vtep: Option<u32>,
            frames: u64,
        ) {
            self.change_one(py, ANY, |lane| lane.lost_after(Reason(reason), network, vtep, frames));
        }

        // Seeing.

        fn watch(&self, py: Python<'_>, is_watched: bool) {
            self.change(py, |lane| lane.book.is_watched = is_watched);
        }

        /// So many of each lane at most.
        fn shown<'py>(&self, py: Python<'py>, most: usize) -> Vec<ShownRow<'py>> {
            let shown = self.look(py, |lane| lane.book.take_shown(most));
            let row = |shown: weft_core::lane::Shown| {
                let frame = PyBytes::new(py, &shown.frame);
                (shown.point as u8, shown.network, frame, shown.reason.map(|reason| reason.0))
            };
            shown.into_iter().flatten().map(row).collect()
        }

        fn unseen(&self, py: Python<'_>) -> u64 {
            self.look(py, |lane| lane.book.unseen).into_iter().sum()
        }

        /// Received, generated, sent, delivered, dropped, held.
        fn ledger(&self, py: Python<'_>) -> [u64; 6] {
            let books = self.look(py, |lane| {
                let book = &lane.book;
                let Book { received, generated, sent, returned, delivered, dropped, .. } = *book;
                [received, generated, sent, returned, delivered, dropped, lane.held() as u64]
            });
            let [received, generated, sent, returned, delivered, dropped, held] =
                books.into_iter().fold([0; 7], summed);
            [received, generated, sent.saturating_sub(returned), delivered, dropped, held]
        }

        /// Of no network (None) and of each by its number, where anything was dropped: (reason, count).
        fn drops(&self, py: Python<'_>) -> Vec<DropsRow> {
            let mut sums: BTreeMap<Option<u32>, Drops> = BTreeMap::new();
            self.look(py, |lane| {
                let numbers = iter::once(None).chain((0..).map(Some));
                for (network, drops) in numbers.zip(&lane.book.drops) {
                    let Some(drops) = drops else { continue };
                    let sum = sums.entry(network).or_insert([0; REASONS_MAX]);
                    *sum = summed(*sum, **drops);
                }
            });
            sums.into_iter().map(|(network, drops)| (network, counted(&drops))).collect()
        }

        /// Of each VTEP: number; sent frames, octets; received frames, octets; (reason, count).
        fn vteps(&self, py: Python<'_>) -> Vec<VtepRow> {
            let mut sums: BTreeMap<u32, ([u64; 4], Drops)> = BTreeMap::new();
            self.look(py, |lane| {
                for (number, vtep) in (0..).zip(&lane.vteps) {
                    let Some(vtep) = vtep else { continue };
                    let Traffic { sent_frames, sent_octets, received_frames, received_octets } = vtep.traffic;
                    let traffic = [sent_frames, sent_octets, received_frames, received_octets];
                    let (known, drops) = sums.entry(number).or_insert(([0; 4], [0; REASONS_MAX]));
                    (*known, *drops) = (summed(*known, traffic), summed(*drops, vtep.drops));
                }
            });
            let rows = sums.into_iter();
            rows.map(|(number, ([a, b, c, d], drops))| (number, a, b, c, d, counted(&drops))).collect()
        }

        /// How many lanes there are.
        fn lanes(&self) -> usize {
            self.core.lanes()
        }

        /// Remembered flows of each network, by its number; one that several lanes carry parts of counts for each.
        fn flow_counts(&self, py: Python<'_>) -> Vec<usize> {
            let counts = self.look(py, |lane| lane.flow_counts());
            let networks = 0..counts.iter().map(Vec::len).max().unwrap_or(0);
            networks.map(|network| counts.iter().filter_map(|counts| counts.get(network)).sum()).collect()
        }

        fn egress_flows<'py>(
            &self,
            py: Python<'py>,
            lane: usize,
            network: u32,
            from: usize,
            count: usize,
        ) -> (Vec<FlowRow<'py>>, Option<usize>) {
            let found = self.change_one(py, lane, |lane| {
                lane.network(network).map(|network| slice(&network.egress, from, count))
            });
            rows(py, found)
        }

        fn ingress_flows<'py>(
            &self,
            py: Python<'py>,
            lane: usize,
            vtep: u32,
            from: usize,
            count: usize,
        ) -> (Vec<FlowRow<'py>>, Option<usize>) {
            let found = self
                .change_one(py, lane, |lane| lane.vtep(vtep).map(|vtep| slice(&vtep.ingress, from, count)));
            rows(py, found)
        }
    }

    type Slice = (Vec<(Key, Verdict, u64, u64, f64)>, Option<usize>);

    fn slice(table: &FlowTable, from: usize, count: usize) -> Slice {
        let (flows, next) = table.slice(from, count);
        (flows.map(|flow| (flow.key, flow.verdict, flow.frames, flow.octets, flow.used_at)).collect(), next)
    }

    fn rows(py: Python<'_>, found: Option<Slice>) -> (Vec<FlowRow<'_>>, Option<usize>) {
        let (flows, next) = found.unwrap_or_default();
        let row = |(key, verdict, frames, octets, used_at): (Key, Verdict, u64, u64, f64)| {
            let (kind, number) = match verdict {
                Verdict::Deliver => (DELIVER, 0),
                Verdict::Encapsulate(vtep) => (ENCAPSULATE, vtep),
                Verdict::Replicate => (REPLICATE, 0),
                Verdict::Drop(reason) => (DROP, u32::from(reason.0)),
            };
            (PyBytes::new(py, &key), kind, number, frames, octets, used_at)
        };
        (flows.into_iter().map(row).collect(), next)
    }

    fn decided((kind, number): (u8, u32)) -> PyResult<Verdict> {
        match kind {
            DELIVER => Ok(Verdict::Deliver),
            ENCAPSULATE => Ok(Verdict::Encapsulate(number)),
            REPLICATE => Ok(Verdict::Replicate),
            DROP if (number as usize) < REASONS_MAX => Ok(Verdict::Drop(Reason(number as u8))),
            _ => Err(PyValueError::new_err(format!("expected a verdict, found ({kind}, {number})"))),
        }
    }

    fn summed<const N: usize>(one: [u64; N], other: [u64; N]) -> [u64; N] {
        std::array::from_fn(|at| one[at] + other[at])
    }

    fn counted(drops: &Drops) -> Counts {
        let numbered = drops.iter().enumerate().filter(|(_, count)| **count > 0);
        numbered.map(|(reason, count)| (reason as u8, *count)).collect()
    }

    fn parse(octets: &[u8], port: u16, scope: u32) -> PyResult<Address> {
        Address::new(octets, port, scope)
            .ok_or_else(|| PyValueError::new_err(format!("expected 4 or 16 octets, found {}", octets.len())))
    }
}
