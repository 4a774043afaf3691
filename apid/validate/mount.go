package validate

import (
	"path"
	"regexp"
	"strings"

	musterv1 "github.com/musterhq/muster/api/muster/v1"
	"github.com/musterhq/muster/internal/expand"
)

// ownLabels begins the labels that Muster gives to what it makes on nodes.
const ownLabels = "com.musterhq."

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
		r.Invalid(at+".type", "is required: BIND, VOLUME or TMPFS")
	case musterv1.Mount_BIND:
		if m.Source == "" {
			r.Invalid(at+".source", "is required: a path on the node")
		} else if !absolute(m.Source) && !expand.Templated(m.Source) {
			r.Invalid(at+".source", "must be an absolute path on the node; the name of a volume is for mounts of type VOLUME")
		}
	case musterv1.Mount_VOLUME:
		checkVolumeName(r, at+".source", m)
	case musterv1.Mount_CLUSTER:
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

// localVolume matches the names that Docker's own volume driver takes.
var localVolume = regexp.MustCompile(`^[a-zA-Z0-9][a-zA-Z0-9_.-]+$`)

// checkVolumeName checks the name of a volume. An empty one stands for a volume that is
// removed with its task. Drivers other than "local" may take further names.
func checkVolumeName(r *Report, field string, m *musterv1.Mount) {
	driver := m.GetVolumeOptions().GetDriverConfig().GetName()
	switch {
	case m.Source == "" || expand.Templated(m.Source):
	case absolute(m.Source):
		r.Invalid(field, "must be the name of a volume; a path on the node is for mounts of type BIND")
	case (driver == "" || driver == "local") && !localVolume.MatchString(m.Source):
		r.Invalid(field, "must be the name of a volume: at least two letters, digits, \"_\", \".\" or \"-\", the first a letter or a digit")
	}
}

func checkMountOptions(r *Report, at string, m *musterv1.Mount) {
	if m.BindOptions != nil {
		if m.Type != musterv1.Mount_BIND {
			r.Invalid(at+".bindOptions", "are for mounts of type BIND only")
		} else {
			checkBindOptions(r, at+".bindOptions", m)
		}
	}
	if v := m.VolumeOptions; v != nil {
		if m.Type != musterv1.Mount_VOLUME {
			r.Invalid(at+".volumeOptions", "are for mounts of type VOLUME only")
		}
		checkLabels(r, at+".volumeOptions.labels", v.Labels)
		for _, key := range sortedKeys(v.Labels) {
			if strings.HasPrefix(key, ownLabels) {
				r.Invalid(keyed(at+".volumeOptions.labels", key), "%s is Muster's own prefix", ownLabels)
			}
		}
		checkLabels(r, at+".volumeOptions.driverConfig.options", v.GetDriverConfig().GetOptions())
		checkText(r, at+".volumeOptions.driverConfig.name", v.GetDriverConfig().GetName())
		if s := v.Subpath; s != "" && (absolute(s) || path.Clean(s) == ".." || strings.HasPrefix(path.Clean(s), "../")) {
			r.Invalid(at+".volumeOptions.subpath", "must be a path within the volume")
		} else if s != "" && m.Source == "" {
			r.Invalid(at+".volumeOptions.subpath", "is for volumes with a name; an anonymous volume is empty")
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
		checkText(r, at+".tmpfsOptions.options", t.Options)
	}
}

func checkBindOptions(r *Report, at string, m *musterv1.Mount) {
	b := m.BindOptions
	switch b.Propagation {
	case "", "rprivate", "private", "rshared", "shared", "rslave", "slave":
	default:
		r.Invalid(at+".propagation", `must be "rprivate", "private", "rshared", "shared", "rslave" or "slave"`)
	}
	for _, option := range []struct {
		name string
		set  bool
	}{{"readOnlyNonRecursive", b.ReadOnlyNonRecursive}, {"readOnlyForceRecursive", b.ReadOnlyForceRecursive}} {
		switch {
		case !option.set:
		case !m.ReadOnly:
			r.Invalid(at+"."+option.name, "is for mounts with readOnly")
		case b.NonRecursive:
			r.Invalid(at+"."+option.name, "excludes nonRecursive")
		}
	}
	if b.ReadOnlyNonRecursive && b.ReadOnlyForceRecursive {
		r.Invalid(at+".readOnlyForceRecursive", "excludes readOnlyNonRecursive")
	}
	if b.ReadOnlyForceRecursive && b.Propagation != "" && b.Propagation != "rprivate" {
		r.Invalid(at+".propagation", `must be "rprivate" for a mount that is read-only with all that is mounted below it`)
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
