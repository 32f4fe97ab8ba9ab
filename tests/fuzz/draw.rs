//! Pseudorandom numbers with a bias towards boundary values.

/// A deterministic pseudorandom number generator (splitmix64).
pub struct Draw(u64);

impl Draw {
    /// Seeds the generator.
    pub fn new(seed: u64) -> Self {
        Self(seed)
    }

    /// Returns any 64-bit number.
    pub fn next(&mut self) -> u64 {
        self.0 = self.0.wrapping_add(0x9e37_79b9_7f4a_7c15);
        let mut z = self.0;
        z = (z ^ (z >> 30)).wrapping_mul(0xbf58_476d_1ce4_e5b9);
        z = (z ^ (z >> 27)).wrapping_mul(0x94d0_49bb_1331_11eb);
        z ^ (z >> 31)
    }

    /// Returns a number below `n`.
    pub fn below(&mut self, n: usize) -> usize {
        (self.next() % n as u64) as usize
    }

    /// Returns true with probability 1/n.
    pub fn one_in(&mut self, n: usize) -> bool {
        self.below(n) == 0
    }

    /// Returns one of the choices.
    pub fn of<T: Copy>(&mut self, choices: &[T]) -> T {
        choices[self.below(choices.len())]
    }

    /// Returns a 32-bit number: mostly a boundary value or one close to it.
    pub fn edge(&mut self) -> u32 {
        const EDGES: [u32; 24] = [
            0,
            1,
            2,
            3,
            4,
            7,
            8,
            15,
            16,
            64,
            72,
            128,
            511,
            512,
            1024,
            4096,
            8192,
            65_535,
            65_536,
            131_072,
            131_073,
            0x7fff_ffff,
            0xffff_fe00,
            0xffff_ffff,
        ];
        match self.below(8) {
            0 => self.next() as u32,
            1 => self
                .of(&EDGES)
                .wrapping_add(self.below(5) as u32)
                .wrapping_sub(2),
            _ => self.of(&EDGES),
        }
    }
}
