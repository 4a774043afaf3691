package conformance

import (
	"fmt"

	executorv1 "github.com/musterhq/muster/api/muster/executor/v1"
	musterv1 "github.com/musterhq/muster/api/muster/v1"
)

// groups checks that a container of a group starts before the main one and runs after it,
// in the same network namespace, and that it can be made again under its id.
func (s *suite) groups() {
	if !s.has(groups) {
		return
	}
	behavior := Behavior{Forever: true, Says: []string{ready}}
	main := s.on(s.task(behavior))
	main.task.Spec.Group = []*musterv1.GroupContainer{{Name: "beside", Role: musterv1.GroupContainer_SIDECAR}}
	main.prepare()
	beside := s.on(s.task(behavior))
	beside.task.SharesNetworkOf = main.task.GetId()
	beside.prepare()
	s.Plugin.Restart()
	first := beside.startReady()
	second := main.startReady()
	sameNetwork(s, first, second)

	beside.shutdown()
	beside.wait()
	beside.removed()
	beside.handle = nil
	beside.prepare()
	sameNetwork(s, beside.startReady(), second)

	main.shutdown()
	main.wait()
	s.Plugin.Restart()
	beside.running()
	after := s.on(s.task(Behavior{Says: []string{ready}}))
	after.task.SharesNetworkOf = main.task.GetId()
	after.prepare()
	after.start()
	if code := after.wait().GetRuntime().GetExitCode(); code != 0 {
		s.Errorf("a container that was started after the main one has ended exits with %d, want 0", code)
	}
	after.removed()
	beside.shutdown()
	beside.removed()
	main.removed()
}

// sameNetwork checks that two containers are in one network namespace, where it can be seen.
func sameNetwork(s *suite, a, b *executorv1.StartResponse) {
	s.Helper()
	inode := func(r *executorv1.StartResponse) uint64 {
		if r.GetRuntime().GetPid() == 0 {
			return 0
		}
		return namespaceInode(fmt.Sprintf("/proc/%d/ns/net", r.GetRuntime().GetPid()))
	}
	if x, y := inode(a), inode(b); x != y {
		s.Errorf("the containers of a group run in network namespaces %d and %d", x, y)
	}
}
