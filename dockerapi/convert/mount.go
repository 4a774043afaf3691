package convert

import (
	"os"
	"strings"

	"github.com/moby/moby/api/types/mount"

	musterv1 "github.com/musterhq/muster/api/muster/v1"
)

// defaultFileMode is that of files without one.
const defaultFileMode = 0o444

func fileMode(m uint32) os.FileMode { return os.FileMode(m) }

var mountTypes = enum[musterv1.Mount_Type]{
	string(mount.TypeBind):      musterv1.Mount_BIND,
	string(mount.TypeVolume):    musterv1.Mount_VOLUME,
	string(mount.TypeTmpfs):     musterv1.Mount_TMPFS,
	string(mount.TypeNamedPipe): musterv1.Mount_NPIPE,
	string(mount.TypeCluster):   musterv1.Mount_CLUSTER,
}

func mountOf(f *faults, field string, m mount.Mount) *musterv1.Mount {
	out := &musterv1.Mount{
		Type: mountTypes.muster(f, field+".Type", string(m.Type)), Source: m.Source, Target: m.Target, ReadOnly: m.ReadOnly,
		Consistency: string(m.Consistency),
	}
	if b := m.BindOptions; b != nil {
		out.BindOptions = &musterv1.BindOptions{
			Propagation: string(b.Propagation), NonRecursive: b.NonRecursive, CreateMountpoint: b.CreateMountpoint,
			ReadOnlyNonRecursive: b.ReadOnlyNonRecursive, ReadOnlyForceRecursive: b.ReadOnlyForceRecursive,
		}
	}
	if v := m.VolumeOptions; v != nil {
		out.VolumeOptions = &musterv1.VolumeOptions{NoCopy: v.NoCopy, Labels: v.Labels, Subpath: v.Subpath}
		if d := v.DriverConfig; d != nil {
			out.VolumeOptions.DriverConfig = &musterv1.Driver{Name: d.Name, Options: d.Options}
		}
	}
	if m.ImageOptions != nil {
		f.add(field+".ImageOptions", "images are not mounted")
	}
	if t := m.TmpfsOptions; t != nil {
		options := make([]string, len(t.Options))
		for i, o := range t.Options {
			if len(o) == 0 || len(o) > 2 {
				f.add(index(field+".TmpfsOptions.Options", i), "want a name, or a name and a value")
			}
			options[i] = strings.Join(o, "=")
		}
		out.TmpfsOptions = &musterv1.TmpfsOptions{SizeBytes: t.SizeBytes, Mode: uint32(t.Mode), Options: strings.Join(options, ",")}
	}
	if m.ClusterOptions != nil && m.Type != mount.TypeCluster {
		f.add(field+".ClusterOptions", "only a mount of type cluster has them")
	}
	return out
}

func dockerMount(m *musterv1.Mount) mount.Mount {
	out := mount.Mount{
		Type: mount.Type(mountTypes.docker(m.Type)), Source: m.Source, Target: m.Target, ReadOnly: m.ReadOnly, Consistency: mount.Consistency(m.Consistency),
	}
	if b := m.BindOptions; b != nil {
		out.BindOptions = &mount.BindOptions{
			Propagation: mount.Propagation(b.Propagation), NonRecursive: b.NonRecursive, CreateMountpoint: b.CreateMountpoint,
			ReadOnlyNonRecursive: b.ReadOnlyNonRecursive, ReadOnlyForceRecursive: b.ReadOnlyForceRecursive,
		}
	}
	if v := m.VolumeOptions; v != nil {
		out.VolumeOptions = &mount.VolumeOptions{NoCopy: v.NoCopy, Labels: v.Labels, Subpath: v.Subpath}
		if d := v.DriverConfig; d != nil {
			out.VolumeOptions.DriverConfig = &mount.Driver{Name: d.Name, Options: d.Options}
		}
	}
	if t := m.TmpfsOptions; t != nil {
		out.TmpfsOptions = &mount.TmpfsOptions{SizeBytes: t.SizeBytes, Mode: os.FileMode(t.Mode)}
		for o := range strings.SplitSeq(t.Options, ",") {
			if o != "" {
				out.TmpfsOptions.Options = append(out.TmpfsOptions.Options, strings.SplitN(o, "=", 2))
			}
		}
	}
	if m.Type == musterv1.Mount_CLUSTER {
		out.ClusterOptions = &mount.ClusterOptions{}
	}
	return out
}
