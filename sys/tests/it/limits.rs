//! What the host lets this process have, out of files as hosts have them.

use std::path::Path;

use paguro_sys::{Bound, Free, Limits};

const MIB: u64 = 1 << 20;

/// A host that consists of these files.
fn host(files: &[(&str, &str)]) -> (tempfile::TempDir, Limits) {
    let root = tempfile::tempdir().unwrap();
    for (path, text) in files {
        let path = root.path().join(path);
        std::fs::create_dir_all(path.parent().unwrap()).unwrap();
        std::fs::write(path, text).unwrap();
    }
    let limits = Limits::under(root.path());
    (root, limits)
}

/// Path, limit and what is free of it, in MiB.
fn cgroups(limits: &Limits) -> Vec<(String, u64, u64)> {
    let all = limits.memory().into_iter();
    all.filter_map(|Free { bytes, bound }| match bound {
        Bound::Cgroup { path, limit_bytes } => Some((
            path.to_str().unwrap().to_owned(),
            limit_bytes / MIB,
            bytes / MIB,
        )),
        _ => None,
    })
    .collect()
}

fn of(path: &str, limit: u64, free: u64) -> (String, u64, u64) {
    (path.to_owned(), limit, free)
}

const UNLIMITED: &str = "9223372036854771712\n";

#[test]
fn version_1_counts_the_own_cgroup_and_those_above() {
    let (_root, limits) = host(&[
        (
            "proc/self/cgroup",
            "9:name=systemd:/x\n4:cpu,memory:/vms/one\n0::/\n",
        ),
        (
            "proc/self/mountinfo",
            "31 23 0:28 / /sys/fs/cgroup rw - tmpfs tmpfs rw,mode=755\n\
             34 31 0:31 / /sys/fs/cgroup/systemd rw shared:3 - cgroup cgroup rw,name=systemd\n\
             35 31 0:32 / /sys/fs/cgroup/memory rw,relatime shared:4 - cgroup cgroup rw,cpu,memory\n",
        ),
        ("sys/fs/cgroup/memory/memory.limit_in_bytes", UNLIMITED),
        (
            "sys/fs/cgroup/memory/memory.usage_in_bytes",
            "99999999999\n",
        ),
        // 356 MiB, of which 300 are used: 40 of them by files, of which 10 are on their way to the disk.
        (
            "sys/fs/cgroup/memory/vms/memory.limit_in_bytes",
            "373293056\n",
        ),
        (
            "sys/fs/cgroup/memory/vms/memory.usage_in_bytes",
            "314572800\n",
        ),
        (
            "sys/fs/cgroup/memory/vms/memory.stat",
            "cache 1\ndirty 0\nwriteback 0\ninactive_file 0\nactive_file 0\ntotal_dirty 8388608\n\
             total_writeback 2097152\ntotal_inactive_file 31457280\ntotal_active_file 10485760\n",
        ),
        (
            "sys/fs/cgroup/memory/vms/one/memory.limit_in_bytes",
            UNLIMITED,
        ),
        ("sys/fs/cgroup/memory/vms/one/memory.usage_in_bytes", "1\n"),
    ]);
    let vms = of("/sys/fs/cgroup/memory/vms", 356, 86);
    assert_eq!(cgroups(&limits), [vms]);
}

/// 512 MiB above, of which little is left, and 1 GiB with a high mark of 256 MiB here.
const VERSION_2: [(&str, &str); 9] = [
    ("proc/self/cgroup", "0::/machine.slice/vm\\x2d1.scope\n"),
    (
        "proc/self/mountinfo",
        "35 31 0:32 / /sys/fs/cgroup rw,nosuid shared:4 - cgroup2 cgroup2 rw,nsdelegate\n",
    ),
    ("sys/fs/cgroup/machine.slice/memory.max", "536870912\n"),
    ("sys/fs/cgroup/machine.slice/memory.high", "max\n"),
    ("sys/fs/cgroup/machine.slice/memory.current", "534773760\n"),
    (
        "sys/fs/cgroup/machine.slice/vm\\x2d1.scope/memory.max",
        "1073741824\n",
    ),
    (
        "sys/fs/cgroup/machine.slice/vm\\x2d1.scope/memory.high",
        "268435456\n",
    ),
    (
        "sys/fs/cgroup/machine.slice/vm\\x2d1.scope/memory.current",
        "209715200\n",
    ),
    (
        "sys/fs/cgroup/machine.slice/vm\\x2d1.scope/memory.stat",
        "anon 1\nfile 104857600\nfile_dirty 10485760\nfile_writeback 0\ninactive_file 52428800\n\
         active_file 52428800\n",
    ),
];

#[test]
fn version_2_counts_the_high_mark_and_all_that_is_above() {
    let (_root, limits) = host(&VERSION_2);
    let own = of("/sys/fs/cgroup/machine.slice/vm\\x2d1.scope", 256, 146);
    let above = of("/sys/fs/cgroup/machine.slice", 512, 2);
    assert_eq!(cgroups(&limits), [own, above]);
}

#[test]
fn a_container_sees_what_is_mounted_for_it() {
    let mut files = VERSION_2;
    // The mount begins with the cgroup of the container.
    files[1].1 =
        "35 31 0:32 /machine.slice/vm\\x2d1.scope /sys/fs/my\\040cgroup ro - cgroup2 c rw\n";
    let mut here: Vec<(String, &str)> = files
        .iter()
        .map(|(path, text)| {
            let inside = path.strip_prefix("sys/fs/cgroup/machine.slice/vm\\x2d1.scope/");
            let there = inside.map(|name| format!("sys/fs/my cgroup/{name}"));
            (there.unwrap_or_else(|| (*path).to_owned()), *text)
        })
        .collect();
    let see = |files: &[(String, &str)]| {
        let files: Vec<_> = files
            .iter()
            .map(|(path, text)| (path.as_str(), *text))
            .collect();
        let (_root, limits) = host(&files);
        cgroups(&limits)
    };
    let own = of("/sys/fs/my cgroup", 256, 146);
    // Without a namespace of cgroups, with one, and in a cgroup beside the one that is mounted.
    for path in [None, Some("0::/\n"), Some("0::/../elsewhere\n")] {
        here[0].1 = path.unwrap_or(here[0].1);
        if path == Some("0::/\n") {
            here[1].1 = "35 31 0:32 / /sys/fs/my\\040cgroup ro - cgroup2 c rw\n";
        }
        assert_eq!(see(&here), std::slice::from_ref(&own), "{path:?}");
    }
}

#[test]
fn where_both_versions_are_the_one_with_memory_counts() {
    let (_root, limits) = host(&[
        ("proc/self/cgroup", "4:memory:/a\n0::/b\n"),
        (
            "proc/self/mountinfo",
            "35 31 0:32 / /sys/fs/cgroup/memory rw - cgroup cgroup rw,memory\n\
             41 31 0:38 / /sys/fs/cgroup/unified rw - cgroup2 cgroup2 rw\n",
        ),
        (
            "sys/fs/cgroup/memory/a/memory.limit_in_bytes",
            "104857600\n",
        ),
        (
            "sys/fs/cgroup/memory/a/memory.usage_in_bytes",
            "209715200\n",
        ),
        ("sys/fs/cgroup/unified/b/cgroup.procs", ""),
    ]);
    assert_eq!(cgroups(&limits), [of("/sys/fs/cgroup/memory/a", 100, 0)]);
}

#[test]
fn limits_of_the_process_and_of_the_host_count_what_is_used() {
    let (_root, limits) = host(&[
        (
            "proc/self/limits",
            "Limit                     Soft Limit           Hard Limit           Units     \n\
             Max data size             104857600            unlimited            bytes     \n\
             Max address space         1073741824           2147483648           bytes     \n",
        ),
        (
            "proc/self/status",
            "Name:\tpaguro\nVmSize:\t  524288 kB\nVmData:\t   51200 kB\nRssAnon:\t    1024 kB\n\
             RssFile:\t    9999 kB\nRssShmem:\t    2048 kB\nVmSwap:\t    4096 kB\n",
        ),
        (
            "proc/meminfo",
            "MemTotal: 9999999 kB\nMemFree: 1 kB\nMemAvailable:   20480 kB\nCommitLimit: 102400 kB\n\
             Committed_AS: 71680 kB\n",
        ),
        ("proc/sys/vm/overcommit_memory", "2\n"),
        ("proc/sys/vm/max_map_count", "1234\n"),
    ]);
    let mut free: Vec<_> = limits
        .memory()
        .into_iter()
        .map(|free| (free.bytes / MIB, free.bound))
        .collect();
    free.sort_by_key(|(bytes, _)| *bytes);
    let address_space = Bound::AddressSpace {
        limit_bytes: 1 << 30,
    };
    let data = Bound::Data {
        limit_bytes: 100 * MIB,
    };
    let all = [
        (20, Bound::Host),
        (30, Bound::Commit),
        (50, data),
        (512, address_space),
    ];
    assert_eq!(free, all);
    assert_eq!(limits.anonymous_bytes(), 7 * MIB);
    assert_eq!(limits.most_mappings(), 1234);
}

#[test]
fn what_a_host_does_not_tell_bounds_nothing() {
    let (_root, limits) = host(&[]);
    assert_eq!(limits.memory(), []);
    assert_eq!(limits.anonymous_bytes(), 0);
    // This one tells of what is free at least.
    let here = Limits::of_this_process().memory();
    assert!(
        here.iter()
            .any(|free| free.bound == Bound::Host && free.bytes > 0)
    );
    assert!(
        Path::new("/proc/self/status").exists() && Limits::of_this_process().anonymous_bytes() > 0
    );
}
