//! Inputs and distances shared by the op tests.

use candle_core::{Device, Result, Tensor};

/// Values that look like activations: mostly small, alternating signs, every 37th an outlier.
pub fn activations(len: usize, seed: u64) -> Vec<f32> {
    let mut state = seed.wrapping_mul(0x9e37_79b9_7f4a_7c15) | 1;
    (0..len)
        .map(|i| {
            state ^= state << 13;
            state ^= state >> 7;
            state ^= state << 17;
            let unit = (state >> 40) as f32 / (1u64 << 24) as f32 - 0.5;
            let sign = if i % 2 == 0 { 1.0 } else { -1.0 };
            sign * unit * if i % 37 == 0 { 20.0 } else { 1.0 }
        })
        .collect()
}

/// [`activations`] as a tensor of the given shape.
pub fn tensor(shape: &[usize], seed: u64) -> Result<Tensor> {
    Tensor::from_vec(activations(shape.iter().product(), seed), shape, &Device::Cpu)
}

/// All values in f64, row-major.
pub fn values(tensor: &Tensor) -> Vec<f64> {
    let flat = tensor.flatten_all().and_then(|t| t.to_vec1::<f32>()).expect("f32 tensor");
    flat.into_iter().map(f64::from).collect()
}

/// Squared distance over squared length of the expected values.
pub fn nmse(actual: &[f64], expected: &[f64]) -> f64 {
    assert_eq!(actual.len(), expected.len());
    let error: f64 = actual.iter().zip(expected).map(|(a, e)| (a - e).powi(2)).sum();
    error / expected.iter().map(|e| e * e).sum::<f64>()
}

/// Bit patterns of an f32 tensor, for equality that means equality.
pub fn bits(tensor: &Tensor) -> Vec<u32> {
    let flat = tensor.flatten_all().and_then(|t| t.to_vec1::<f32>()).expect("f32 tensor");
    flat.into_iter().map(f32::to_bits).collect()
}

/// A team of threads that live for one call.
pub struct Threads(pub usize);

impl crate::team::Team for Threads {
    fn num_threads(&self) -> usize {
        self.0
    }

    fn run(&self, work: &(dyn Fn(usize) + Sync)) {
        std::thread::scope(|scope| {
            (1..self.0).for_each(|thread| drop(scope.spawn(move || work(thread))));
            work(0);
        });
    }
}

/// Normally distributed values: sums of twelve uniform ones.
pub fn gaussian(len: usize, seed: u64) -> Vec<f32> {
    let mut state = seed.wrapping_mul(0x9e37_79b9_7f4a_7c15) | 1;
    let mut unit = || {
        state ^= state << 13;
        state ^= state >> 7;
        state ^= state << 17;
        (state >> 40) as f32 / (1u64 << 24) as f32 - 0.5
    };
    (0..len).map(|_| (0..12).map(|_| unit()).sum()).collect()
}
