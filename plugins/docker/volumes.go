package docker

import (
	"cmp"
	"context"
	"errors"
	"fmt"
	"maps"
	"os"
	"path"
	"slices"
	"strings"

	"github.com/docker/docker/api/types/container"
	"github.com/docker/docker/api/types/mount"
	"github.com/docker/docker/api/types/volume"
	"google.golang.org/protobuf/types/known/timestamppb"

	musterv1 "github.com/musterhq/muster/api/muster/v1"
	"github.com/musterhq/muster/plugins/sdk"
)

var mountTypes = map[musterv1.Mount_Type]mount.Type{
	musterv1.Mount_BIND:   mount.TypeBind,
	musterv1.Mount_VOLUME: mount.TypeVolume,
	musterv1.Mount_TMPFS:  mount.TypeTmpfs,
	musterv1.Mount_NPIPE:  mount.TypeNamedPipe,
}

// mounts returns the mounts of a container. Volumes that they make get a label of the node.
func mounts(specs []*musterv1.Mount, node string) ([]mount.Mount, error) {
	var all []mount.Mount
	for i, spec := range specs {
		field := fmt.Sprintf("mounts[%d]", i)
		kind, ok := mountTypes[spec.GetType()]
		if !ok {
			return nil, sdk.SpecFault(field+".type", fmt.Errorf("the docker executor does not have mounts of type %s yet", spec.GetType()))
		}
		if kind == mount.TypeBind && !path.IsAbs(spec.GetSource()) {
			return nil, sdk.SpecFault(field+".source", errors.New("it must be an absolute path"))
		}
		if kind != mount.TypeNamedPipe && !path.IsAbs(spec.GetTarget()) {
			return nil, sdk.SpecFault(field+".target", errors.New("it must be an absolute path"))
		}
		m := mount.Mount{
			Type: kind, Source: spec.GetSource(), Target: spec.GetTarget(), ReadOnly: spec.GetReadOnly(),
			Consistency: mount.Consistency(spec.GetConsistency()),
		}
		if options := spec.GetBindOptions(); options != nil {
			m.BindOptions = &mount.BindOptions{
				Propagation:            mount.Propagation(options.GetPropagation()),
				NonRecursive:           options.GetNonRecursive(),
				CreateMountpoint:       options.GetCreateMountpoint(),
				ReadOnlyNonRecursive:   options.GetReadOnlyNonRecursive(),
				ReadOnlyForceRecursive: options.GetReadOnlyForceRecursive(),
			}
			if options.GetReadOnlyForceRecursive() {
				// The Engine wants it to be said.
				m.BindOptions.Propagation = mount.PropagationRPrivate
			}
		}
		if kind == mount.TypeVolume {
			options := spec.GetVolumeOptions()
			labels := map[string]string{}
			maps.Copy(labels, options.GetLabels())
			labels[labelNodeID] = node
			m.VolumeOptions = &mount.VolumeOptions{NoCopy: options.GetNoCopy(), Labels: labels, Subpath: options.GetSubpath()}
			if driver := options.GetDriverConfig(); driver != nil {
				m.VolumeOptions.DriverConfig = &mount.Driver{Name: driver.GetName(), Options: driver.GetOptions()}
			}
		}
		if options := spec.GetTmpfsOptions(); options != nil {
			m.TmpfsOptions = &mount.TmpfsOptions{SizeBytes: options.GetSizeBytes(), Mode: os.FileMode(options.GetMode())}
			for word := range strings.SplitSeq(options.GetOptions(), ",") {
				if word != "" {
					m.TmpfsOptions.Options = append(m.TmpfsOptions.Options, strings.SplitN(word, "=", 2))
				}
			}
		}
		all = append(all, m)
	}
	return all, nil
}

// volumeDrivers returns the names of the Engine's volume drivers. If it does not tell them
// now, those that it told last still hold.
func (e *Executor) volumeDrivers(ctx context.Context) []string {
	info, err := e.engine.Info(ctx)
	e.mu.Lock()
	defer e.mu.Unlock()
	if err == nil {
		e.drivers = slices.Sorted(slices.Values(info.Plugins.Volume))
	}
	return e.drivers
}

// localDriver is the Engine's own volume driver.
const localDriver = "local"

// checkVolumes refuses a volume that exists with another driver or with other options than
// a mount asks for. The Engine would use it as it is.
func (e *Executor) checkVolumes(ctx context.Context, specs []*musterv1.Mount) error {
	for i, spec := range specs {
		driver := spec.GetVolumeOptions().GetDriverConfig()
		if spec.GetType() != musterv1.Mount_VOLUME || spec.GetSource() == "" || driver == nil {
			continue
		}
		found, err := e.engine.VolumeInspect(ctx, spec.GetSource())
		if isNotFound(err) {
			continue
		}
		if err != nil {
			return engineError(fmt.Errorf("inspect volume %s: %w", spec.GetSource(), err))
		}
		refuse := func(field, has string) error {
			return sdk.NodeFault(fmt.Errorf("mounts[%d].volume_options.driver_config.%s: volume %q exists on this node with %s: remove it, or use another name",
				i, field, spec.GetSource(), has))
		}
		switch name := cmp.Or(driver.GetName(), localDriver); {
		case found.Driver != name && found.Driver != name+":latest":
			return refuse("name", "driver "+found.Driver)
		case name == localDriver && len(driver.GetOptions()) > 0 && !maps.Equal(found.Options, driver.GetOptions()):
			return refuse("options", fmt.Sprintf("options %q", found.Options))
		}
	}
	return nil
}

// Volumes implements [sdk.VolumeKeeper].
func (e *Executor) Volumes(ctx context.Context, nodeID string) ([]*sdk.Volume, error) {
	if err := e.connect(ctx); err != nil {
		return nil, err
	}
	listed, err := e.engine.VolumeList(ctx, volume.ListOptions{})
	if err != nil {
		return nil, engineError(fmt.Errorf("list the volumes: %w", err))
	}
	users, err := e.volumeUsers(ctx)
	if err != nil {
		return nil, err
	}
	var all []*sdk.Volume
	for _, v := range listed.Volumes {
		tasks, used := users[v.Name]
		slices.Sort(tasks)
		one := &sdk.Volume{
			Name: v.Name, Driver: v.Driver, Labels: v.Labels, Options: v.Options, InUse: used, MadeByTask: nodeID != "" && v.Labels[labelNodeID] == nodeID, TaskIds: slices.Compact(tasks),
		}
		if at := engineTime(v.CreatedAt); !at.IsZero() {
			one.CreatedAt = timestamppb.New(at)
		}
		all = append(all, one)
	}
	return all, nil
}

// volumeUsers returns the ids of the tasks that use volumes, by volume. A volume that only
// other containers use has none.
func (e *Executor) volumeUsers(ctx context.Context) (map[string][]string, error) {
	containers, err := e.engine.ContainerList(ctx, container.ListOptions{All: true})
	if err != nil {
		return nil, engineError(fmt.Errorf("list the containers: %w", err))
	}
	users := map[string][]string{}
	for _, c := range containers {
		for _, m := range c.Mounts {
			if m.Type != mount.TypeVolume {
				continue
			}
			ids := users[m.Name]
			if id := c.Labels[labelTaskID]; id != "" {
				ids = append(ids, id)
			}
			users[m.Name] = ids
		}
	}
	return users, nil
}

// RemoveVolume implements [sdk.VolumeKeeper].
func (e *Executor) RemoveVolume(ctx context.Context, name string) error {
	if err := e.connect(ctx); err != nil {
		return err
	}
	err := e.engine.VolumeRemove(ctx, name, false)
	switch {
	case isNotFound(err):
		return sdk.NoVolume(name)
	case isConflict(err):
		return sdk.VolumeInUse(name, err)
	case err != nil:
		return engineError(fmt.Errorf("remove volume %s: %w", name, err))
	}
	return nil
}
