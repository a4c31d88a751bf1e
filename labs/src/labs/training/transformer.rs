//! A decoder that can be trained: every op is one that candle differentiates.

use candle_core::{D, DType, Device, Result, Tensor, Var};
use candle_nn::loss::cross_entropy;
use candle_nn::ops::{silu, softmax};
use rand::RngExt;
use rand_chacha::ChaCha8Rng;
use rand_chacha::rand_core::SeedableRng;

/// Sizes.
#[derive(Debug, Clone, Copy)]
pub struct Shape {
    /// Different inputs.
    pub vocab_size: usize,
    /// Width of the residual stream.
    pub hidden_size: usize,
    /// Layers.
    pub num_layers: usize,
    /// Heads of a layer.
    pub num_heads: usize,
    /// Longest sequence.
    pub context: usize,
}

impl Shape {
    /// Weights that take part in a matrix product for each token.
    pub fn num_matmul_weights(&self) -> usize {
        let (h, v) = (self.hidden_size, self.vocab_size);
        self.num_layers * 12 * h * h + h * v
    }
}

/// The model and its weights.
pub struct Transformer {
    shape: Shape,
    weights: Vec<Var>,
    /// `[T, T]`, minus infinity where a position may not look.
    mask: Tensor,
}

/// Weights of a layer: Q, K and V as one, output, up, down.
const PER_LAYER: usize = 4;

impl Transformer {
    /// Weights drawn from a seed.
    pub fn new(shape: Shape, seed: u64) -> Result<Self> {
        let mut rng = ChaCha8Rng::seed_from_u64(seed);
        let mut draw = |rows: usize, columns: usize| {
            let scale = 1.0 / (rows as f32).sqrt();
            let values: Vec<f32> = (0..rows * columns).map(|_| rng.random_range(-scale..scale)).collect();
            Var::from_vec(values, (rows, columns), &Device::Cpu)
        };
        let (h, v, t) = (shape.hidden_size, shape.vocab_size, shape.context);
        let mut weights = vec![draw(v, h)?, draw(t, h)?];
        for _ in 0..shape.num_layers {
            weights.extend([draw(h, 3 * h)?, draw(h, h)?, draw(h, 4 * h)?, draw(4 * h, h)?]);
        }
        weights.push(draw(h, v)?);
        let mask: Vec<f32> = (0..t * t).map(|at| if at % t > at / t { f32::NEG_INFINITY } else { 0.0 }).collect();
        Ok(Self { shape, weights, mask: Tensor::from_vec(mask, (t, t), &Device::Cpu)? })
    }

    /// All that is learned.
    pub fn weights(&self) -> &[Var] {
        &self.weights
    }

    /// Mean cross-entropy of the next token.
    ///
    /// Shapes: `ids [B, T + 1]` u32; a scalar.
    pub fn loss(&self, ids: &Tensor) -> Result<Tensor> {
        let (h, t) = (self.shape.hidden_size, self.shape.context);
        let b = ids.dim(0)?;
        let inputs = ids.narrow(1, 0, t)?.contiguous()?.flatten_all()?;
        let targets = ids.narrow(1, 1, t)?.contiguous()?.flatten_all()?;
        let embedded = self.weights[0].index_select(&inputs, 0)?.reshape((b, t, h))?; // [B * T] -> [B, T, H]
        let mut hidden = embedded.broadcast_add(&self.weights[1])?;
        for weights in self.weights[2..].chunks_exact(PER_LAYER) {
            hidden = (&hidden + self.attention(&norm(&hidden)?, &weights[0], &weights[1])?)?;
            let up = silu(&linear(&norm(&hidden)?, &weights[2])?)?; // [B, T, H] -> [B, T, 4H]
            hidden = (&hidden + linear(&up, &weights[3])?)?;
        }
        let logits = linear(&norm(&hidden)?, &self.weights[self.weights.len() - 1])?; // [B, T, H] -> [B, T, V]
        cross_entropy(&logits.flatten_to(1)?, &targets)
    }

    fn attention(&self, x: &Tensor, qkv: &Tensor, out: &Tensor) -> Result<Tensor> {
        let (b, t, h) = x.dims3()?;
        let (heads, head_dim) = (self.shape.num_heads, h / self.shape.num_heads);
        let qkv = linear(x, qkv)?.reshape((b, t, 3, heads, head_dim))?; // [B, T, H] -> [B, T, 3, NH, D]
        let part = |at: usize| qkv.narrow(2, at, 1)?.squeeze(2)?.transpose(1, 2)?.contiguous(); // -> [B, NH, T, D]
        let (q, k, v) = (part(0)?, part(1)?, part(2)?);
        let scores = (q.matmul(&k.transpose(2, 3)?.contiguous()?)? / (head_dim as f64).sqrt())?; // [B, NH, T, T]
        let weights = softmax(&scores.broadcast_add(&self.mask)?, D::Minus1)?;
        let mixed = weights.matmul(&v)?.transpose(1, 2)?.contiguous()?.reshape((b, t, h))?; // -> [B, T, H]
        linear(&mixed, out)
    }
}

/// `[B, T, K] @ [K, N] -> [B, T, N]`, as one product over all rows.
fn linear(x: &Tensor, weight: &Tensor) -> Result<Tensor> {
    let (b, t, k) = x.dims3()?;
    x.reshape((b * t, k))?.matmul(weight)?.reshape((b, t, weight.dim(1)?))
}

/// RMS norm without a weight.
fn norm(x: &Tensor) -> Result<Tensor> {
    let mean_square = (x.sqr()?.sum_keepdim(D::Minus1)? / x.dim(D::Minus1)? as f64)?;
    x.broadcast_div(&(mean_square + 1e-6)?.sqrt()?)?.to_dtype(DType::F32)
}
