//! What a probe of a card says, in plain figures; [`crate::cuda`] measures it. Knows no device, so that programs built
//! without CUDA can name it.

/// One ceiling of a card.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash, PartialOrd, Ord)]
pub enum ProbeKind {
    /// Reading device memory. Units: bytes read.
    Read,
    /// Copying inside device memory. Units: bytes read plus bytes written.
    Copy,
    /// Copying pinned host memory to the device. Units: bytes.
    HostToDevice,
    /// Copying to pinned host memory. Units: bytes.
    DeviceToHost,
    /// A matrix product by cuBLASLt, bf16. Units: operations, a multiply-add is two.
    ProductBf16,
    /// A matrix product by cuBLASLt, e4m3 with a scale for each row. Units: as [`ProbeKind::ProductBf16`].
    ProductFp8,
    /// Launching an empty kernel by itself, seen from the host. Units: launches.
    LaunchEager,
    /// An empty kernel in a recorded graph of many. Units: launches.
    LaunchGraph,
}

impl ProbeKind {
    /// Every kind, in the order they are measured.
    pub const ALL: [Self; 8] = [
        Self::Read,
        Self::Copy,
        Self::HostToDevice,
        Self::DeviceToHost,
        Self::ProductBf16,
        Self::ProductFp8,
        Self::LaunchEager,
        Self::LaunchGraph,
    ];

    /// What it is, for people.
    pub fn name(self) -> &'static str {
        match self {
            Self::Read => "read",
            Self::Copy => "copy",
            Self::HostToDevice => "host to device",
            Self::DeviceToHost => "device to host",
            Self::ProductBf16 => "bf16 products",
            Self::ProductFp8 => "fp8 products",
            Self::LaunchEager => "launch, eager",
            Self::LaunchGraph => "launch, in a graph",
        }
    }
}

/// Rounds of one kind.
#[derive(Debug, Clone, PartialEq)]
pub struct ProbeRow {
    /// What was measured.
    pub kind: ProbeKind,
    /// Work of a round, in the units of the kind.
    pub work: f64,
    /// Seconds of each round; or why it cannot be measured on this card.
    pub seconds: Result<Vec<f64>, String>,
}
