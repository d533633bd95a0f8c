//! What a machine lacks, by made-up facts.

use expect_test::{Expect, expect};

use super::*;

const ROOT: Capabilities = Capabilities {
    net_admin: true,
    bpf: true,
    perfmon: true,
    sys_admin: true,
};

const NOBODY: Capabilities = Capabilities {
    net_admin: false,
    bpf: false,
    perfmon: false,
    sys_admin: false,
};

/// A machine that has everything.
fn good() -> Found {
    Found {
        release: "6.18.4".to_owned(),
        user: 0,
        capabilities: ROOT,
        is_in_user_namespace: false,
        programs: Programs::Loaded,
        has_btf: true,
        node_namespace: Ok(7),
        cgroup: Cgroup::At("/sys/fs/cgroup".into()),
        pins: Pins::Writable,
    }
}

fn refused() -> Programs {
    Programs::Refused("Operation not permitted".to_owned())
}

/// A machine with everything but this.
fn check(change: impl FnOnce(&mut Found), expected: Expect) {
    let mut found = good();
    change(&mut found);
    let message = match found.usable() {
        Ok(usable) => format!("{usable:?}"),
        Err(error) => error.to_string(),
    };
    // A line for each part.
    expected.assert_eq(&(message.replace("; ", ";\n") + "\n"));
}

#[test]
fn a_machine_with_everything_will_do() {
    check(
        |_| (),
        expect![[r#"
        Usable { cgroup: "/sys/fs/cgroup", node_namespace: 7, is_to_mount: false }
    "#]],
    );
}

#[test]
fn root_without_sys_admin_will_do() {
    let capabilities = Capabilities {
        sys_admin: false,
        ..ROOT
    };
    check(
        |found| (found.user, found.capabilities) = (1000, capabilities),
        expect![[r#"
            Usable { cgroup: "/sys/fs/cgroup", node_namespace: 7, is_to_mount: false }
        "#]],
    );
    // Before Linux 5.8 and in older container engines it stands for the others.
    let capabilities = Capabilities {
        net_admin: true,
        sys_admin: true,
        ..NOBODY
    };
    check(
        |found| found.capabilities = capabilities,
        expect![[r#"
        Usable { cgroup: "/sys/fs/cgroup", node_namespace: 7, is_to_mount: false }
    "#]],
    );
}

#[test]
fn an_older_release_that_can_do_everything_will_do() {
    let release = "5.14.0-570.el9.x86_64".to_owned();
    check(
        |found| found.release = release,
        expect![[r#"
        Usable { cgroup: "/sys/fs/cgroup", node_namespace: 7, is_to_mount: false }
    "#]],
    );
}

#[test]
fn who_is_not_root_is_told() {
    check(
        |found| {
            (found.user, found.capabilities, found.programs) = (65534, NOBODY, refused());
            found.pins = Pins::NotWritable("/sys/fs/bpf".into(), "Permission denied".to_owned());
        },
        expect![[r#"
            --backend ebpf cannot be had: user 65534 has no CAP_BPF, CAP_PERFMON, CAP_NET_ADMIN (run proxyd as root, or with these capabilities;
            in Kubernetes: securityContext.runAsUser: 0 with privileged or capabilities.add: [BPF, PERFMON, NET_ADMIN]);
            /sys/fs/bpf cannot be written to: Permission denied (run proxyd as its owner, or name another directory with --bpf-path);
            --backend nftables needs none of that but CAP_NET_ADMIN
        "#]],
    );
}

#[test]
fn who_lacks_a_capability_is_told_which() {
    let without_bpf = Capabilities {
        net_admin: true,
        ..NOBODY
    };
    check(
        |found| (found.capabilities, found.programs) = (without_bpf, refused()),
        expect![[r#"
            --backend ebpf cannot be had: user 0 has no CAP_BPF, CAP_PERFMON (run proxyd as root, or with these capabilities;
            in Kubernetes: securityContext.privileged or capabilities.add: [BPF, PERFMON]);
            --backend nftables needs none of that
        "#]],
    );
    let without_perfmon = Capabilities {
        bpf: true,
        ..without_bpf
    };
    check(
        |found| found.capabilities = without_perfmon,
        expect![[r#"
        --backend ebpf cannot be had: user 0 has no CAP_PERFMON (run proxyd as root, or with these capabilities;
        in Kubernetes: securityContext.privileged or capabilities.add: [PERFMON]);
        --backend nftables needs none of that
    "#]],
    );
    let without_net_admin = Capabilities {
        net_admin: false,
        ..ROOT
    };
    check(
        |found| (found.capabilities, found.programs) = (without_net_admin, refused()),
        expect![[r#"
            --backend ebpf cannot be had: user 0 has no CAP_NET_ADMIN (run proxyd as root, or with these capabilities;
            in Kubernetes: securityContext.privileged or capabilities.add: [NET_ADMIN]);
            --backend nftables needs none of that but CAP_NET_ADMIN
        "#]],
    );
}

#[test]
fn the_root_of_a_user_namespace_is_told() {
    check(
        |found| {
            (found.is_in_user_namespace, found.programs) = (true, refused());
            found.pins = Pins::NotMounted;
        },
        expect![[r#"
            --backend ebpf cannot be had: proxyd is in a user namespace, and the kernel takes BPF programs from the machine's own only (run it there;
            in Kubernetes: hostUsers: true);
            no BPF filesystem is mounted at /sys/fs/bpf, and mounting one takes CAP_SYS_ADMIN (as root: mount -t bpf bpf /sys/fs/bpf);
            --backend nftables needs none of that
        "#]],
    );
}

#[test]
fn a_kernel_without_what_the_programs_use_is_told() {
    let old = |found: &mut Found| {
        found.release = "4.19.0-27-amd64".to_owned();
        found.node_namespace = Err("Protocol not available".to_owned());
    };
    check(
        old,
        expect![[r#"
        --backend ebpf cannot be had: Linux 4.19.0-27-amd64 has no cookies of network namespaces (Protocol not available): use Linux 5.15 or later, built with that;
        --backend nftables needs none of that
    "#]],
    );
    check(
        |found| found.programs = Programs::UnknownKind,
        expect![[r#"
            --backend ebpf cannot be had: Linux 6.18.4 has no BPF programs for cgroups (CONFIG_CGROUP_BPF): use Linux 5.15 or later, built with that;
            --backend nftables needs none of that
        "#]],
    );
    check(
        |found| found.programs = Programs::Missing,
        expect![[r#"
        --backend ebpf cannot be had: Linux 6.18.4 has no BPF (CONFIG_BPF_SYSCALL): use Linux 5.15 or later, built with that;
        --backend nftables needs none of that
    "#]],
    );
    check(
        |found| found.programs = refused(),
        expect![[r#"
        --backend ebpf cannot be had: the kernel loads no BPF program: Operation not permitted (the system call bpf may be forbidden by a seccomp profile;
        in Kubernetes: securityContext.seccompProfile.type: Unconfined);
        --backend nftables needs none of that
    "#]],
    );
    check(
        |found| found.has_btf = false,
        expect![[r#"
        --backend ebpf cannot be had: Linux 6.18.4 has no BTF at /sys/kernel/btf/vmlinux (CONFIG_DEBUG_INFO_BTF): use Linux 5.15 or later, built with that;
        --backend nftables needs none of that
    "#]],
    );
}

#[test]
fn a_machine_without_cgroup_v2_is_told() {
    check(
        |found| found.cgroup = Cgroup::NotMounted,
        expect![[r#"
        --backend ebpf cannot be had: cgroup v2 is not mounted at /sys/fs/cgroup or /sys/fs/cgroup/unified (mount -t cgroup2 cgroup2 DIR, and name it with --cgroup DIR);
        --backend nftables needs none of that
    "#]],
    );
    check(
        |found| found.cgroup = Cgroup::NotThere("/sys/fs/cgroup/cpu".into()),
        expect![[r#"
            --backend ebpf cannot be had: --cgroup /sys/fs/cgroup/cpu is not a directory of cgroup v2 (name one, such as /sys/fs/cgroup);
            --backend nftables needs none of that
        "#]],
    );
}

#[test]
fn a_machine_without_a_bpf_filesystem_is_told_if_none_can_be_mounted() {
    check(
        |found| found.pins = Pins::NotMounted,
        expect![[r#"
        Usable { cgroup: "/sys/fs/cgroup", node_namespace: 7, is_to_mount: true }
    "#]],
    );
    let capabilities = Capabilities {
        sys_admin: false,
        ..ROOT
    };
    check(
        |found| (found.pins, found.capabilities) = (Pins::NotMounted, capabilities),
        expect![[r#"
            --backend ebpf cannot be had: no BPF filesystem is mounted at /sys/fs/bpf, and mounting one takes CAP_SYS_ADMIN (as root: mount -t bpf bpf /sys/fs/bpf);
            --backend nftables needs none of that
        "#]],
    );
    check(
        |found| found.pins = Pins::Elsewhere("/run/proxyd".into()),
        expect![[r#"
            --backend ebpf cannot be had: --bpf-path /run/proxyd is not in a BPF filesystem (name a directory in one, such as /sys/fs/bpf/proxyd);
            --backend nftables needs none of that
        "#]],
    );
}

#[test]
fn all_is_told_at_once() {
    check(
        |found| {
            *found = Found {
                release: "4.19.0-27-amd64".to_owned(),
                user: 1000,
                capabilities: NOBODY,
                is_in_user_namespace: false,
                programs: Programs::Missing,
                has_btf: false,
                node_namespace: Err("Protocol not available".to_owned()),
                cgroup: Cgroup::NotMounted,
                pins: Pins::NotMounted,
            }
        },
        expect![[r#"
            --backend ebpf cannot be had: user 1000 has no CAP_BPF, CAP_PERFMON, CAP_NET_ADMIN (run proxyd as root, or with these capabilities;
            in Kubernetes: securityContext.runAsUser: 0 with privileged or capabilities.add: [BPF, PERFMON, NET_ADMIN]);
            Linux 4.19.0-27-amd64 has no BPF (CONFIG_BPF_SYSCALL), no cookies of network namespaces (Protocol not available), no BTF at /sys/kernel/btf/vmlinux (CONFIG_DEBUG_INFO_BTF): use Linux 5.15 or later, built with that;
            cgroup v2 is not mounted at /sys/fs/cgroup or /sys/fs/cgroup/unified (mount -t cgroup2 cgroup2 DIR, and name it with --cgroup DIR);
            no BPF filesystem is mounted at /sys/fs/bpf, and mounting one takes CAP_SYS_ADMIN (as root: mount -t bpf bpf /sys/fs/bpf);
            --backend nftables needs none of that but CAP_NET_ADMIN
        "#]],
    );
}
