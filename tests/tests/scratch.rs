use aya::programs::{Program};
use aya::{EbpfLoader};
#[test]
fn scratch() {
    let path = std::env::var("OBJ").unwrap_or("../ebpf/objects/proxyd-ebpf.o".into());
    let bytes = std::fs::read(path).unwrap();
    let started = std::time::Instant::now();
    let mut loader = EbpfLoader::new();
    let mut loaded = loader.load(&bytes).unwrap();
    println!("maps {:?}", started.elapsed());
    let mut names: Vec<String> = loaded.programs().map(|(n, _)| n.to_owned()).collect();
    names.sort();
    for name in names {
        let p = loaded.program_mut(&name).unwrap();
        let started = std::time::Instant::now();
        match p {
            Program::CgroupSockAddr(p) => p.load().unwrap(),
            Program::SchedClassifier(p) => p.load().unwrap(),
            _ => panic!(),
        }
        let t = started.elapsed();
        let info = p.info().unwrap();
        println!("{name} {:?} verified {:?} xlated {:?}", t, info.verified_instruction_count(), info.size_translated());
    }
}
