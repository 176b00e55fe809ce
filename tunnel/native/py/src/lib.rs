//! `tunnel._native`: the engine's door to Python.
//!
//! Numbers and octets go in and come out; the words for them stand in `tunnel.nativedatapath`.  Every call lets go of
//! the interpreter's lock before it waits for the lane's, which the worker gives up between two turns.
//!
//! A broken engine (a panic, anywhere in it) does nothing more and says so through its bell, once: calls that would
//! change it then answer as if they had, since whoever hears the bell ends the daemon.

#![deny(unsafe_op_in_unsafe_fn, clippy::undocumented_unsafe_blocks)]

use pyo3::prelude::*;

/// The native engine.
#[pymodule]
mod _native {
    use pyo3::exceptions::PyValueError;
    use pyo3::prelude::*;
    use pyo3::types::{PyBytes, PyTuple};
    use weft_core::flows::{FlowTable, Key, Verdict};
    use weft_core::lane::{Bounds, Drops, Lane, NetworkSettings};
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

    type FlowRow<'py> = (Bound<'py, PyBytes>, u8, u32, u64, u64, f64);
    type QuestionRow<'py> = (u64, u32, Option<u32>, Bound<'py, PyBytes>);
    type ShownRow<'py> = (u8, Option<u32>, Bound<'py, PyBytes>, Option<u8>);
    type HopRow = ([u8; 6], [u8; 6], bool, Vec<u8>, Vec<u8>, u16, Vec<u16>);
    type VtepRow = (u32, u64, u64, u64, u64, Vec<(u8, u64)>);

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

    /// A lane with its worker.
    #[pyclass(frozen)]
    struct Engine(Core);

    impl Engine {
        /// Changes the lane; the default where it is broken.
        fn change<T: Send + Default>(&self, py: Python<'_>, work: impl FnOnce(&mut Lane) -> T + Send) -> T {
            py.detach(|| self.0.with_lane(work).unwrap_or_default())
        }

        /// Looks at the lane, broken or not.
        fn look<T: Send>(&self, py: Python<'_>, work: impl FnOnce(&mut Lane) -> T + Send) -> T {
            py.detach(|| self.0.with_any_lane(work))
        }
    }

    #[pymethods]
    impl Engine {
        #[new]
        fn new(send_segments: usize, write_segments: usize) -> PyResult<Engine> {
            Ok(Engine(Core::new(Bounds { send_segments, write_segments })?))
        }

        fn start(&self) -> PyResult<()> {
            Ok(self.0.start()?)
        }

        fn stop(&self, py: Python<'_>) {
            py.detach(|| self.0.stop());
        }

        fn turn(&self, py: Python<'_>) -> bool {
            py.detach(|| self.0.turn_once())
        }

        fn fileno(&self) -> i32 {
            self.0.bell().fd()
        }

        fn ring(&self) {
            self.0.bell().ring();
        }

        fn silence(&self) {
            self.0.bell().silence();
        }

        fn failure(&self) -> Option<String> {
            self.0.failure()
        }

        fn break_on_purpose(&self) {
            self.0.break_on_purpose();
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
            self.change(py, |lane| lane.add_network(settings, sys::now()))
        }

        fn remove_network(&self, py: Python<'_>, network: u32) {
            self.change(py, |lane| lane.remove_network(network));
        }

        fn use_device(
            &self,
            py: Python<'_>,
            network: u32,
            fd: i32,
            overlay_mtu: usize,
            merges_udp: bool,
        ) -> PyResult<()> {
            let used = self.change(py, |lane| Some(lane.use_device(network, fd, overlay_mtu, merges_udp)));
            Ok(used.unwrap_or(Ok(()))?)
        }

        fn add_underlay(&self, py: Python<'_>, senders: Vec<i32>, has_gso: bool) -> u32 {
            self.change(py, |lane| lane.add_underlay(senders, has_gso))
        }

        fn use_gso(&self, py: Python<'_>, underlay: u32, has_gso: bool) {
            self.change(py, |lane| {
                if let Some(underlay) = lane.underlays.get_mut(underlay as usize) {
                    underlay.has_gso = has_gso;
                }
            });
        }

        fn add_port(&self, py: Python<'_>, fd: i32) -> u32 {
            self.change(py, |lane| lane.add_port(fd))
        }

        fn remove_port(&self, py: Python<'_>, port: u32) {
            self.change(py, |lane| lane.remove_port(port));
        }

        fn bind(&self, py: Python<'_>, port: u32, vni: u32, network: u32) -> PyResult<()> {
            Ok(self.change(py, |lane| Some(lane.bind(port, vni, network))).unwrap_or(Ok(()))?)
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
            let door = SuperDoor::new(tap, hop)?;
            self.change(py, |lane| lane.use_door(vtep, Some(door)));
            Ok(())
        }

        fn without_door(&self, py: Python<'_>, vtep: u32) {
            self.change(py, |lane| lane.use_door(vtep, None));
        }

        fn suspend(&self, py: Python<'_>, underlay: u32) {
            self.change(py, |lane| lane.suspend(underlay));
        }

        fn take_use(&self, py: Python<'_>, underlay: u32) -> bool {
            self.change(py, |lane| lane.take_use(underlay))
        }

        fn withdraw_vtep(&self, py: Python<'_>, vtep: u32) {
            self.change(py, |lane| lane.withdraw_vtep(vtep));
        }

        fn program_subnets(&self, py: Python<'_>, network: u32, subnets: Vec<Subnet>) {
            self.change(py, |lane| lane.program_subnets(network, subnets));
        }

        fn program_flood(&self, py: Python<'_>, network: u32, vteps: Vec<u32>) {
            self.change(py, |lane| lane.program_flood(network, vteps));
        }

        fn forget(&self, py: Python<'_>, places: Vec<Vec<u8>>) {
            self.change(py, |lane| lane.forget(&places));
        }

        // Upcalls.

        fn next_question<'py>(&self, py: Python<'py>) -> Option<QuestionRow<'py>> {
            let (number, network, vtep, frame) = self.change(py, Lane::next_question)?;
            Some((number, network, vtep, PyBytes::new(py, &frame)))
        }

        fn answer<'py>(
            &self,
            py: Python<'py>,
            question: u64,
            verdict: (u8, u32),
            memory: Option<(Key, f64, Vec<Vec<u8>>)>,
        ) -> PyResult<Option<Bound<'py, PyBytes>>> {
            let answer = Answer::Verdict(decided(verdict)?);
            let next = self.change(py, |lane| {
                let memory = memory.as_ref().map(|(key, expires_at, places)| Memory {
                    key: *key,
                    expires_at: *expires_at,
                    places,
                });
                lane.answer(question, &answer, memory, sys::now())
            });
            Ok(next.map(|frame| PyBytes::new(py, &frame)))
        }

        fn reply<'py>(&self, py: Python<'py>, question: u64, frame: Vec<u8>) -> Option<Bound<'py, PyBytes>> {
            let answer = Answer::Reply(frame);
            let next = self.change(py, |lane| lane.answer(question, &answer, None, sys::now()));
            next.map(|frame| PyBytes::new(py, &frame))
        }

        fn notices<'py>(&self, py: Python<'py>) -> PyResult<Vec<Bound<'py, PyTuple>>> {
            let row = |notice: Notice| match notice {
                Notice::TooBig { vtep, frame, is_answered, is_news } => {
                    ("too-big", vtep, PyBytes::new(py, &frame), is_answered, is_news).into_pyobject(py)
                }
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
            self.change(py, Lane::take_notices).into_iter().map(row).collect()
        }

        fn write_own(&self, py: Python<'_>, network: u32, frame: Vec<u8>) {
            self.change(py, |lane| {
                lane.book.generated += 1;
                lane.write_own(network, &frame);
            });
        }

        fn answered(&self, py: Python<'_>, network: u32, packet: Vec<u8>, is_taken: bool) {
            self.change(py, |lane| lane.answered(network, &packet, is_taken));
        }

        fn send_own(&self, py: Python<'_>, vtep: u32, packet: Vec<u8>) {
            self.change(py, |lane| lane.send_own(vtep, &packet));
        }

        // Every second.

        fn expire(&self, py: Python<'_>, now: f64) {
            self.change(py, |lane| lane.expire(now));
        }

        fn lost_before(&self, py: Python<'_>, reason: u8, network: Option<u32>, frames: u64) {
            self.change(py, |lane| lane.lost_before(Reason(reason), network, frames));
        }

        fn lost_after(
            &self,
            py: Python<'_>,
            reason: u8,
            network: Option<u32>,
            vtep: Option<u32>,
            frames: u64,
        ) {
            self.change(py, |lane| lane.lost_after(Reason(reason), network, vtep, frames));
        }

        // Seeing.

        fn watch(&self, py: Python<'_>, is_watched: bool) {
            self.change(py, |lane| lane.book.is_watched = is_watched);
        }

        fn shown<'py>(&self, py: Python<'py>) -> Vec<ShownRow<'py>> {
            let shown = self.change(py, |lane| lane.book.take_shown());
            let row = |shown: weft_core::lane::Shown| {
                let frame = PyBytes::new(py, &shown.frame);
                (shown.point as u8, shown.network, frame, shown.reason.map(|reason| reason.0))
            };
            shown.into_iter().map(row).collect()
        }

        fn unseen(&self, py: Python<'_>) -> u64 {
            self.look(py, |lane| lane.book.unseen)
        }

        /// Received, generated, sent, delivered, dropped, held.
        fn ledger(&self, py: Python<'_>) -> (u64, u64, u64, u64, u64, usize) {
            self.look(py, |lane| {
                let book = &lane.book;
                (book.received, book.generated, book.sent, book.delivered, book.dropped, lane.held())
            })
        }

        /// Of no network, then of each network by its number: (reason, count).
        fn drops(&self, py: Python<'_>) -> Vec<Vec<(u8, u64)>> {
            self.look(py, |lane| lane.book.drops.iter().map(counted).collect())
        }

        /// Of each VTEP: number; sent frames, octets; received frames, octets; (reason, count).
        fn vteps(&self, py: Python<'_>) -> Vec<VtepRow> {
            self.look(py, |lane| {
                let known = lane.vteps.iter().enumerate();
                let known = known.filter_map(|(number, vtep)| Some((number as u32, vtep.as_ref()?)));
                let row = |(number, vtep): (u32, &weft_core::lane::Vtep)| {
                    let traffic = vtep.traffic;
                    let (sent_frames, sent_octets) = (traffic.sent_frames, traffic.sent_octets);
                    let (received_frames, received_octets) =
                        (traffic.received_frames, traffic.received_octets);
                    (number, sent_frames, sent_octets, received_frames, received_octets, counted(&vtep.drops))
                };
                known.map(row).collect()
            })
        }

        /// Remembered flows of each network, by its number.
        fn flow_counts(&self, py: Python<'_>) -> Vec<usize> {
            self.look(py, |lane| lane.flow_counts())
        }

        fn egress_flows<'py>(
            &self,
            py: Python<'py>,
            network: u32,
            from: usize,
            count: usize,
        ) -> (Vec<FlowRow<'py>>, Option<usize>) {
            let found = self
                .look(py, |lane| lane.network(network).map(|network| slice(&network.egress, from, count)));
            rows(py, found)
        }

        fn ingress_flows<'py>(
            &self,
            py: Python<'py>,
            vtep: u32,
            from: usize,
            count: usize,
        ) -> (Vec<FlowRow<'py>>, Option<usize>) {
            let found = self.look(py, |lane| lane.vtep(vtep).map(|vtep| slice(&vtep.ingress, from, count)));
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

    fn counted(drops: &Drops) -> Vec<(u8, u64)> {
        let numbered = drops.iter().enumerate().filter(|(_, count)| **count > 0);
        numbered.map(|(reason, count)| (reason as u8, *count)).collect()
    }

    fn parse(octets: &[u8], port: u16, scope: u32) -> PyResult<Address> {
        Address::new(octets, port, scope)
            .ok_or_else(|| PyValueError::new_err(format!("expected 4 or 16 octets, found {}", octets.len())))
    }
}
