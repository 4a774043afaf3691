package conformance

import (
	"slices"

	"google.golang.org/grpc/codes"

	executorv1 "github.com/musterhq/muster/api/muster/executor/v1"
	musterv1 "github.com/musterhq/muster/api/muster/v1"
)

// volumes checks that a volume is listed with the task that uses it, outlives the task, and
// is removed when no task uses it. Only containers can have volumes.
func (s *suite) volumes() {
	_, err := call(s, s.Plugin.Service().ListVolumes, &executorv1.ListVolumesRequest{NodeId: s.node})
	if !s.has(volumes) {
		if code(err) != codes.Unimplemented {
			s.Errorf("ListVolumes without the capability = %v, want UNIMPLEMENTED", err)
		}
		if err := s.removeVolume("none"); code(err) != codes.Unimplemented {
			s.Errorf("RemoveVolume without the capability = %v, want UNIMPLEMENTED", err)
		}
		return
	}
	if err != nil {
		s.Fatalf("ListVolumes: %v", err)
	}
	name := nextName("volume")
	if err := s.removeVolume(name); code(err) != codes.NotFound {
		s.Errorf("RemoveVolume of an unknown volume = %v, want NOT_FOUND", err)
	}
	spec := s.Spec(Behavior{Forever: true})
	if spec.GetContainer() == nil {
		return
	}
	spec.GetContainer().Mounts = append(spec.GetContainer().Mounts, &musterv1.Mount{
		Type: musterv1.Mount_VOLUME, Source: name, Target: "/muster-conformance", VolumeOptions: &musterv1.VolumeOptions{Labels: map[string]string{"suite": name}},
	})
	c := s.on(s.taskOf(spec))
	c.prepare()
	c.start()
	v := s.volume(s.node, name)
	if v == nil || v.GetDriver() == "" || v.GetLabels()["suite"] != name || !v.GetMadeByTask() || !v.GetInUse() || !slices.Equal(v.GetTaskIds(), []string{c.task.GetId()}) {
		s.Errorf("the volume of a running task is listed as %v", v)
	}
	if v := s.volume("another-node", name); v == nil || v.GetMadeByTask() {
		s.Errorf("for a node whose task did not make it the volume is listed as %v", v)
	}
	if err := s.removeVolume(name); code(err) != codes.FailedPrecondition {
		s.Errorf("RemoveVolume of a volume that a task uses = %v, want FAILED_PRECONDITION", err)
	}
	c.removed()
	if v := s.volume(s.node, name); v == nil || v.GetInUse() || len(v.GetTaskIds()) > 0 {
		s.Errorf("after Remove of its task the volume is listed as %v", v)
	}
	if err := s.removeVolume(name); err != nil {
		s.Errorf("RemoveVolume: %v", err)
	}
	if v := s.volume(s.node, name); v != nil {
		s.Errorf("a volume that was removed is listed as %v", v)
	}
}

func (s *suite) removeVolume(name string) error {
	_, err := call(s, s.Plugin.Service().RemoveVolume, &executorv1.RemoveVolumeRequest{Name: name})
	return err
}

// volume returns a volume as it is listed for a node, or nil if it is not.
func (s *suite) volume(node, name string) *musterv1.NodeVolume {
	s.Helper()
	listed, err := call(s, s.Plugin.Service().ListVolumes, &executorv1.ListVolumesRequest{NodeId: node})
	if err != nil {
		s.Fatalf("ListVolumes: %v", err)
	}
	for _, v := range listed.GetVolumes() {
		if v.GetName() == name {
			return v
		}
	}
	return nil
}
