//! Loads a model's weights out of an image, in the format of safetensors (a header of JSON, then the
//! tensors), without mounting the image and without reading the file: each tensor is a view of a map.
//!
//! `cargo run --release -p pagefence --example safetensors [-- IMAGE PATH]`
//!
//! Without arguments it makes an image with a model of 128 MiB first. Each tensor is summed up in the
//! map, and again by reads; the exit status is 1 if the sums differ.

use std::collections::BTreeMap;
use std::error::Error;
use std::path::Path;
use std::process::ExitCode;
use std::time::Instant;

use pagefence::{Advice, File, Kind, MapOptions, MapSlice, Mkfs, Options, Volume};

type Failure = Box<dyn Error + Send + Sync>;

/// Headers are small: what claims more is damaged.
const HEADER_MAX: u64 = 100 << 20;
/// Bytes that are summed up at a time.
const STEP: usize = 1 << 20;
/// Where the model is in the image that is made here.
const MODEL: &str = "/models/made.safetensors";

fn main() -> ExitCode {
    let arguments: Vec<_> = std::env::args_os().skip(1).collect();
    let done = match &arguments[..] {
        [] => load_made(),
        [image, path] => load(image.as_ref(), path.as_ref()),
        _ => Err("usage: safetensors [IMAGE PATH]".into()),
    };
    match done {
        Ok(line) => {
            println!("{line}");
            ExitCode::SUCCESS
        }
        Err(error) => {
            eprintln!("safetensors: {error}");
            ExitCode::FAILURE
        }
    }
}

/// A tensor, as the header has it: where its bytes are behind the header.
#[derive(Debug)]
struct Tensor {
    dtype: String,
    shape: Vec<u64>,
    begin: usize,
    end: usize,
}

fn load(image: &Path, path: &Path) -> Result<String, Failure> {
    let volume = Volume::open(image, Options::new())?;
    let file = volume.open_file(path)?;
    let begin = Instant::now();
    let map = file.map(.., MapOptions::shared().read_only())?;
    map.advise(Advice::Sequential);
    let mut length = [0; 8];
    map.read_at(0, &mut length)?;
    let length = u64::from_le_bytes(length);
    if length > HEADER_MAX {
        return Err(format!("a header of {length} bytes").into());
    }
    let start = 8 + usize::try_from(length)?;
    let header = map.slice(8..start)?.to_vec()?;
    let tensors = tensors(std::str::from_utf8(&header)?)?;
    let data = map.slice(start..)?;
    let loaded = begin.elapsed();
    let mut bytes = 0;
    for (name, tensor) in &tensors {
        let view = data.slice(tensor.begin..tensor.end)?;
        let sum = sum_of_view(view)?;
        if sum != sum_of_reads(&file, start + tensor.begin, view.len())? {
            return Err(format!("{name}: the map and the file differ").into());
        }
        bytes += view.len();
        println!(
            "{name:<24} {:<5} {:?} {sum:016x}",
            tensor.dtype, tensor.shape
        );
    }
    Ok(format!(
        "safetensors: {} tensors in place after {loaded:.1?}; their {bytes} bytes, mapped, are those \
         of the file",
        tensors.len()
    ))
}

fn sum(sum: u64, bytes: &[u8]) -> u64 {
    bytes.iter().fold(sum, |sum, byte| {
        (sum.rotate_left(5) ^ u64::from(*byte)).wrapping_mul(0x517c_c1b7_2722_0a95)
    })
}

fn sum_of_view(view: MapSlice<'_>) -> pagefence::Result<u64> {
    let mut bytes = vec![0; STEP.min(view.len())];
    let mut total = 0;
    for piece in view.chunks(STEP) {
        let bytes = &mut bytes[..piece.len()];
        piece.copy_to_slice(bytes)?;
        total = sum(total, bytes);
    }
    Ok(total)
}

fn sum_of_reads(file: &File, at: usize, length: usize) -> pagefence::Result<u64> {
    let mut bytes = vec![0; STEP.min(length)];
    let mut total = 0;
    for done in (0..length).step_by(STEP) {
        let bytes = &mut bytes[..STEP.min(length - done)];
        let read = file.read_at((at + done) as u64, bytes)?;
        total = sum(total, &bytes[..read]);
    }
    Ok(total)
}

/// A model of 16 layers, in an image of its own.
fn load_made() -> Result<String, Failure> {
    let mut header = Vec::new();
    let mut data = Vec::new();
    let mut word = 1_u64;
    for layer in 0..16 {
        for (name, rows, columns) in [
            ("attention", 1024, 1024),
            ("norm", 1, 1024),
            ("mlp", 1024, 1023),
        ] {
            let begin = data.len();
            for _ in 0..rows * columns / 2 {
                word = word.wrapping_mul(6_364_136_223_846_793_005).wrapping_add(1);
                data.extend_from_slice(&word.to_le_bytes());
            }
            header.push(format!(
                r#""layer.{layer}.{name}":{{"dtype":"F32","shape":[{rows},{columns}],"data_offsets":[{begin},{}]}}"#,
                data.len()
            ));
        }
    }
    let header = format!(
        r#"{{"__metadata__":{{"made":"here"}},{}}}"#,
        header.join(",")
    );
    let mut model = (header.len() as u64).to_le_bytes().to_vec();
    model.extend_from_slice(header.as_bytes());
    model.append(&mut data);
    let image = std::env::temp_dir().join(format!("pagefence-model-{}.img", std::process::id()));
    let made = Mkfs::new(Kind::Ext4)
        .size(192 << 20)
        .directory("/models")
        .file(MODEL, model);
    made.format(&image)?;
    let loaded = load(&image, MODEL.as_ref());
    std::fs::remove_file(&image)?;
    loaded
}

/// What a header says.
fn tensors(header: &str) -> Result<BTreeMap<String, Tensor>, Failure> {
    let mut json = Json(header.trim_start());
    let mut tensors = BTreeMap::new();
    json.members(|json, name| {
        if name == "__metadata__" {
            return json.members(|json, _| json.string().map(drop));
        }
        let (mut dtype, mut shape, mut offsets) = (String::new(), Vec::new(), Vec::new());
        json.members(|json, key| {
            match key.as_str() {
                "dtype" => dtype = json.string()?,
                "shape" => shape = json.numbers()?,
                "data_offsets" => offsets = json.numbers()?,
                _ => return Err(format!("a tensor with a {key}").into()),
            }
            Ok(())
        })?;
        let [begin, end] = offsets[..] else {
            return Err(format!("{name} has no place").into());
        };
        let (begin, end) = (usize::try_from(begin)?, usize::try_from(end)?);
        let tensor = Tensor {
            dtype,
            shape,
            begin,
            end,
        };
        tensors.insert(name, tensor);
        Ok(())
    })?;
    Ok(tensors)
}

/// What is left to be parsed: as much of JSON as these headers have.
struct Json<'a>(&'a str);

impl Json<'_> {
    fn next(&mut self, what: char) -> Result<(), Failure> {
        match self.0.strip_prefix(what) {
            Some(rest) => {
                self.0 = rest.trim_start();
                Ok(())
            }
            None => Err(format!("no header: {what} is missing").into()),
        }
    }

    /// Calls `member` at the value of each member of an object.
    fn members(
        &mut self,
        mut member: impl FnMut(&mut Self, String) -> Result<(), Failure>,
    ) -> Result<(), Failure> {
        self.next('{')?;
        while !self.0.starts_with('}') {
            let name = self.string()?;
            self.next(':')?;
            member(self, name)?;
            if !self.0.starts_with('}') {
                self.next(',')?;
            }
        }
        self.next('}')
    }

    fn string(&mut self) -> Result<String, Failure> {
        let rest = self
            .0
            .strip_prefix('"')
            .ok_or("no header: a text is missing")?;
        let (text, rest) = rest.split_once('"').ok_or("no header: a text has no end")?;
        if text.contains('\\') {
            return Err("a text with escapes".into());
        }
        self.0 = rest.trim_start();
        Ok(text.to_owned())
    }

    fn numbers(&mut self) -> Result<Vec<u64>, Failure> {
        self.next('[')?;
        let (numbers, rest) = self
            .0
            .split_once(']')
            .ok_or("no header: a list has no end")?;
        self.0 = rest.trim_start();
        let numbers = numbers
            .split(',')
            .map(str::trim)
            .filter(|text| !text.is_empty());
        Ok(numbers.map(str::parse).collect::<Result<_, _>>()?)
    }
}
