package compose

import (
	"cmp"
	"fmt"
	"maps"
	"strconv"
	"strings"

	"github.com/compose-spec/compose-go/v2/types"
	"github.com/docker/go-units"

	musterv1 "github.com/musterhq/muster/api/muster/v1"
)

// mounts returns the volumes, the tmpfs and the shared memory of a service.
func (s *service) mounts() []*musterv1.Mount {
	var list []*musterv1.Mount
	for i, v := range s.Volumes {
		if m := s.mount(s.at("volumes", number(i)), v); m != nil {
			list = append(list, m)
		}
	}
	for i, text := range s.Tmpfs {
		list = append(list, s.tmpfs(s.at("tmpfs", number(i)), text))
	}
	if s.ShmSize != 0 {
		list = append(list, &musterv1.Mount{
			Type: musterv1.Mount_TMPFS, Target: "/dev/shm", TmpfsOptions: &musterv1.TmpfsOptions{SizeBytes: int64(s.ShmSize), Mode: 0o1777},
		})
	}
	return list
}

func (s *service) mount(at []string, v types.ServiceVolumeConfig) *musterv1.Mount {
	m := &musterv1.Mount{Source: v.Source, Target: v.Target, ReadOnly: v.ReadOnly, Consistency: v.Consistency}
	switch v.Type {
	case types.VolumeTypeBind:
		m.Type = musterv1.Mount_BIND
		m.BindOptions = s.bind(v.Target, v.Bind)
	case types.VolumeTypeVolume:
		m.Type = musterv1.Mount_VOLUME
		m.VolumeOptions = s.volume(v, m)
	case types.VolumeTypeTmpfs:
		m.Type = musterv1.Mount_TMPFS
		if v.Source != "" {
			s.invalid(append(at, "source"), v.Source, "a tmpfs has no source")
		}
		if t := v.Tmpfs; t != nil && (t.Size != 0 || t.Mode != 0) {
			m.TmpfsOptions = &musterv1.TmpfsOptions{SizeBytes: int64(t.Size), Mode: t.Mode}
		}
	default:
		reason := map[string]string{
			types.VolumeTypeCluster:   "cluster volumes are not supported yet; use a volume driver of the nodes",
			types.VolumeTypeImage:     "images cannot be mounted; copy the files into the service's image",
			types.VolumeTypeNamedPipe: "nodes run Linux, which has no named pipes of this kind",
		}[v.Type]
		s.unsupported(append(at, "type"), v.Source, reason)
		return nil
	}
	return m
}

func (s *service) bind(target string, b *types.ServiceVolumeBind) *musterv1.BindOptions {
	if b == nil {
		return nil
	}
	o := &musterv1.BindOptions{Propagation: b.Propagation}
	switch b.Recursive {
	case "disabled":
		o.NonRecursive = true
	case "writable":
		o.ReadOnlyNonRecursive = true
	case "readonly":
		o.ReadOnlyForceRecursive = true
	}
	// The short form stands for it too, but Docker's stacks never did that, and old Engines
	// cannot.
	o.CreateMountpoint = bool(b.CreateHostPath) && s.index.createsPath(s.Name, target)
	if o.Propagation == "" && !o.NonRecursive && !o.ReadOnlyNonRecursive && !o.ReadOnlyForceRecursive && !o.CreateMountpoint {
		return nil
	}
	return o
}

// volume returns the options of a volume, and sets the mount's source to its full name.
func (s *service) volume(v types.ServiceVolumeConfig, m *musterv1.Mount) *musterv1.VolumeOptions {
	o := &musterv1.VolumeOptions{Labels: map[string]string{}}
	if v.Volume != nil {
		o.NoCopy, o.Subpath = v.Volume.NoCopy, v.Volume.Subpath
	}
	named, known := s.project.Volumes[v.Source]
	if known {
		m.Source = named.Name
	}
	if !bool(named.External) {
		maps.Copy(o.Labels, named.Labels)
		if v.Volume != nil {
			maps.Copy(o.Labels, v.Volume.Labels)
		}
		o.Labels[namespaceLabel] = s.project.Name
		o.DriverConfig = driver(named.Driver, nil)
		if len(named.DriverOpts) > 0 {
			o.DriverConfig = driver(cmp.Or(named.Driver, "local"), named.DriverOpts)
		}
	}
	if len(o.Labels) == 0 && o.DriverConfig == nil && !o.NoCopy && o.Subpath == "" {
		return nil
	}
	return o
}

// tmpfs reads "path:size=64m,mode=1777".
func (s *service) tmpfs(at []string, text string) *musterv1.Mount {
	target, options, _ := strings.Cut(text, ":")
	m := &musterv1.Mount{Type: musterv1.Mount_TMPFS, Target: target}
	t := &musterv1.TmpfsOptions{}
	for option := range strings.SplitSeq(options, ",") {
		name, value, _ := strings.Cut(option, "=")
		var err error
		switch name {
		case "", "rw", "nosuid", "nodev", "noexec":
		case "ro":
			m.ReadOnly = true
		case "exec":
			t.Options = "exec"
		case "size":
			t.SizeBytes, err = units.RAMInBytes(value)
		case "mode":
			var mode uint64
			mode, err = strconv.ParseUint(value, 8, 12)
			t.Mode = uint32(mode)
		default:
			s.unsupported(at, text, fmt.Sprintf("the option %q is not supported", name))
		}
		if err != nil {
			s.invalid(at, text, "invalid option %q: want for example size=64m or mode=1777", option)
		}
	}
	if t.SizeBytes != 0 || t.Mode != 0 || t.Options != "" {
		m.TmpfsOptions = t
	}
	return m
}
