//! What the targets share: drawn numbers, frames made of them, and naive judges of what the core made.

pub mod draw;
pub mod judge;
