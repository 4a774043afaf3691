package placement

import (
	"fmt"
	"slices"
	"strings"

	musterv1 "github.com/musterhq/muster/api/muster/v1"
	"github.com/musterhq/muster/internal/taskspec"
)

// VolumeCapability begins the capabilities of executors that name their volume drivers.
const VolumeCapability = "volume."

// localVolumeDriver is a driver that every executor with volumes has.
const localVolumeDriver = "local"

// volumeDrivers returns the volume drivers that the mounts of a task name, each once.
func volumeDrivers(task *musterv1.TaskSpec) []string {
	var names []string
	for _, c := range taskspec.Containers(task) {
		for _, m := range c.GetMounts() {
			name := m.GetVolumeOptions().GetDriverConfig().GetName()
			if m.GetType() == musterv1.Mount_VOLUME && name != "" && name != localVolumeDriver {
				names = append(names, name)
			}
		}
	}
	slices.Sort(names)
	return slices.Compact(names)
}

// volumeFilter refuses nodes whose executor lacks a volume driver. An executor that names
// none does not say what it has, and is asked for any.
type volumeFilter struct{ *Request }

func (volumeFilter) name() Filter    { return FilterVolumes }
func (volumeFilter) noun() string    { return "volume driver" }
func (f volumeFilter) applies() bool { return len(f.volumeDrivers) > 0 }

func (f volumeFilter) check(n *Node, _ *Usage) bool { return len(f.missing(n.Offer(f.Kind))) == 0 }

// missing returns the indices of the drivers that an executor lacks.
func (f volumeFilter) missing(o *Offer) []int {
	has := func(name string) bool {
		// Docker's managed plugins have a tag, which may be left out.
		name = VolumeCapability + name
		return slices.Contains(o.Capabilities, name) || slices.Contains(o.Capabilities, name+":latest")
	}
	if !slices.ContainsFunc(o.Capabilities, func(c string) bool { return strings.HasPrefix(c, VolumeCapability) }) {
		return nil
	}
	var missing []int
	for i, name := range f.volumeDrivers {
		if !has(strings.TrimSuffix(name, ":latest")) {
			missing = append(missing, i)
		}
	}
	return missing
}

func (f volumeFilter) explain(c Candidate, count func(cause, int64)) {
	for _, i := range f.missing(c.Node.Offer(f.Kind)) {
		count(cause{index: i}, 0)
	}
}

func (f volumeFilter) describe(c cause, t tally) string {
	return fmt.Sprintf("no volume driver %q %s", f.volumeDrivers[c.index], t.where(c))
}
