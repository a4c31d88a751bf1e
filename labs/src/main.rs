//! The lab: measures what each optimization gains, after it is proven equal.
#![forbid(unsafe_code)]

fn main() {}
