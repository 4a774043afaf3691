package validate

import (
	"path"
	"strings"

	musterv1 "github.com/musterhq/muster/api/muster/v1"
)

func checkMounts(r *Report, field string, mounts []*musterv1.Mount) {
	if len(mounts) > maxList {
		r.Invalid(field, "has %d entries; at most %d are allowed", len(mounts), maxList)
		return
	}
	seen := map[string]int{}
	for i, m := range mounts {
		at := Indexed(field, i)
		checkText(r, at+".source", m.Source)
		checkText(r, at+".target", m.Target)
		checkMountType(r, at, m)
		checkMountOptions(r, at, m)
		if m.Target == "" {
			r.Invalid(at+".target", "is required")
			continue
		}
		if !absolute(m.Target) {
			r.Invalid(at+".target", "must be an absolute path")
		} else if path.Clean(m.Target) == "/" {
			r.Invalid(at+".target", "must not be the root directory")
		}
		target := path.Clean(m.Target)
		if first, taken := seen[target]; taken {
			r.Invalid(at+".target", "%q is already the target of %s", short(m.Target), Indexed(field, first))
			continue
		}
		seen[target] = i
	}
}

func checkMountType(r *Report, at string, m *musterv1.Mount) {
	switch m.Type {
	case musterv1.Mount_TYPE_UNSPECIFIED:
		r.Invalid(at+".type", "is required: BIND, VOLUME, TMPFS, NPIPE or CLUSTER")
	case musterv1.Mount_BIND:
		if m.Source == "" {
			r.Invalid(at+".source", "is required: a path on the node")
		} else if !absolute(m.Source) && !strings.Contains(m.Source, "{{") {
			r.Invalid(at+".source", "must be an absolute path on the node")
		}
	case musterv1.Mount_NPIPE, musterv1.Mount_CLUSTER:
		if m.Source == "" {
			r.Invalid(at+".source", "is required")
		}
	case musterv1.Mount_TMPFS:
		if m.Source != "" {
			r.Invalid(at+".source", "a TMPFS mount has no source")
		}
	}
	switch m.Consistency {
	case "", "default", "consistent", "cached", "delegated":
	default:
		r.Invalid(at+".consistency", `must be "default", "consistent", "cached" or "delegated"`)
	}
}

func checkMountOptions(r *Report, at string, m *musterv1.Mount) {
	if b := m.BindOptions; b != nil {
		if m.Type != musterv1.Mount_BIND {
			r.Invalid(at+".bindOptions", "are for mounts of type BIND only")
		}
		switch b.Propagation {
		case "", "rprivate", "private", "rshared", "shared", "rslave", "slave":
		default:
			r.Invalid(at+".bindOptions.propagation", `must be "rprivate", "private", "rshared", "shared", "rslave" or "slave"`)
		}
	}
	if v := m.VolumeOptions; v != nil {
		if m.Type != musterv1.Mount_VOLUME {
			r.Invalid(at+".volumeOptions", "are for mounts of type VOLUME only")
		}
		checkLabels(r, at+".volumeOptions.labels", v.Labels)
		if s := v.Subpath; s != "" && (absolute(s) || path.Clean(s) == ".." || strings.HasPrefix(path.Clean(s), "../")) {
			r.Invalid(at+".volumeOptions.subpath", "must be a path within the volume")
		}
	}
	if t := m.TmpfsOptions; t != nil {
		if m.Type != musterv1.Mount_TMPFS {
			r.Invalid(at+".tmpfsOptions", "are for mounts of type TMPFS only")
		}
		if t.SizeBytes < 0 {
			r.Invalid(at+".tmpfsOptions.sizeBytes", "must not be negative")
		}
		if t.Mode > 0o7777 {
			r.Invalid(at+".tmpfsOptions.mode", "must be permission bits, at most 4095 (07777)")
		}
	}
}

// absolute also takes Windows paths, for containers of that platform.
func absolute(p string) bool {
	if path.IsAbs(p) || strings.HasPrefix(p, `\\`) {
		return true
	}
	drive := len(p) >= 3 && p[1] == ':' && (p[2] == '\\' || p[2] == '/')
	return drive && (p[0]|0x20 >= 'a' && p[0]|0x20 <= 'z')
}
