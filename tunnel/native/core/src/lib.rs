//! The native engine: carries frames between a TAP and UDP sockets and remembers verdicts; decides nothing.
//!
//! It does what `tunnel.pydatapath` does, which is its specification: the same octets, counters, drop reasons.
//!
//! ```text
//! worker    a thread's turns: drain, poll, sleep
//! lane      what it touches; programmed, answered and looked at by the loop thread
//! egress    device → underlay: flow, split, door, sendmmsg
//! ingress   underlay → device: recvmmsg, flow, merge, repair, writev
//! packet_…  the same for networks of bare packets, where it differs
//! upcalls   what is not remembered is asked, and waits
//! ```

#![deny(unsafe_op_in_unsafe_fn, clippy::undocumented_unsafe_blocks)]

pub mod batch;
pub mod bucket;
pub mod checksum;
pub mod discovery;
pub mod ecn;
pub mod egress;
pub mod entropy;
pub mod flows;
pub mod hash;
pub mod ingress;
pub mod lane;
pub mod limits;
pub mod merge;
pub mod octets;
pub mod packet;
mod packet_egress;
mod packet_ingress;
pub mod reason;
pub mod repair;
pub mod split;
pub mod super_packet;
pub mod sys;
#[cfg(any(test, fuzzing))]
pub mod testing;
pub mod upcalls;
pub mod vnet;
pub mod worker;
