//! Why a frame went no further, as a small number.
//!
//! The names are those of `overlay.verdict.DropReason`, which Python matches by name (`Reason::NAMES`).  Here are
//! only the reasons an engine gives itself; what was decided comes with a verdict, as a number behind these.

/// How many reasons there may be, decided ones included.
pub const REASONS_MAX: usize = 64;

/// A reason for a drop.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Reason(pub u8);

macro_rules! reasons {
    ($($number:literal $name:ident,)*) => {
        #[allow(missing_docs)] // what they mean stands beside their names in overlay/verdict.py
        impl Reason {
            $(pub const $name: Reason = Reason($number);)*
            /// Each reason's name, in the order of the numbers.
            pub const NAMES: &'static [&'static str] = &[$(stringify!($name)),*];
        }
    };
}

reasons! {
    0 TRUNCATED,
    1 BAD_FLAGS,
    2 RESERVED_BITS,
    3 UNKNOWN_VNI,
    4 UNKNOWN_VTEP,
    5 INNER_MALFORMED,
    6 SPLIT_HORIZON,
    7 NO_VTEP,
    8 MTU_EXCEEDED,
    9 UNDERLAY_ERROR,
    10 UNDERLAY_FULL,
    11 ECN_CONGESTED,
    12 DEVICE_FULL,
    13 RECEIVE_OVERRUN,
    14 DEVICE_OVERRUN,
    15 UPCALL_LIMIT,
    16 UPCALL_OVERFLOW,
    17 UPCALL_TIMEOUT,
    18 BUM_LIMIT,
    19 NO_ROUTE,
    20 TTL_EXPIRED,
}
