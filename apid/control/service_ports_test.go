package control_test

import (
	"strconv"
	"strings"
	"testing"

	"google.golang.org/grpc/codes"

	recordv1 "github.com/musterhq/muster/api/muster/record/v1"
	musterv1 "github.com/musterhq/muster/api/muster/v1"
	"github.com/musterhq/muster/internal/store"
)

func TestReservedPortsAreNotPublished(t *testing.T) {
	t.Parallel()
	for name, c := range map[string]struct {
		port string
		// reserved replaces the reserved ports if it is not nil.
		reserved []string
		refused  bool
	}{
		"data path":                   {"4789/udp", nil, true},
		"data path on its node":       {"4789/udp@host", nil, true},
		"data path, nothing reserved": {"4789/udp", []string{}, true},
		"data path of a node":         {"5789/udp", []string{}, true},
		"its number for TCP":          {"4789/tcp", nil, false},
		"ssh":                         {"22", nil, true},
		"ssh on its node":             {"22/tcp@host", nil, true},
		"ssh for UDP":                 {"22/udp", nil, false},
		"apid":                        {"7700", nil, true},
		"REST":                        {"7780", nil, true},
		"operations of workers":       {"8705", nil, true},
		"Consul":                      {"8500", nil, true},
		"gossip of Consul":            {"8301/udp", nil, true},
		"names of Consul":             {"8600/udp", nil, true},
		"names":                       {"53/udp", nil, false},
		"web":                         {"80", nil, false},
		"nothing is reserved":         {"22", []string{}, false},
		"own":                         {"53/udp", []string{"53"}, true},
		"own, other protocol":         {"53/udp", []string{"53/tcp"}, false},
		"end of a range":              {"9010", []string{"9000-9010/tcp"}, true},
		"after a range":               {"9011", []string{"9000-9010/tcp"}, false},
		"any port":                    {"0", []string{"1-29999", "32768-65535"}, false},
	} {
		subtest(t, name, func(t *testing.T) {
			a := start(t)
			a.update(func(tx *store.Tx) {
				a.Tables.NodeStates.Put(tx, "n1", &recordv1.NodeState{State: musterv1.NodeStatus_READY, Description: &musterv1.NodeDescription{
					DataPath: &musterv1.DataPath{Address: "192.0.2.1", Port: 5789},
				}})
			})
			if c.reserved != nil {
				a.settings(&musterv1.NetworkConfig{ReservedPorts: &musterv1.ReservedPorts{Ports: c.reserved}})
			}
			a.create(webSpec("old"))
			_, created := a.CreateService(t.Context(), &musterv1.CreateServiceRequest{Spec: publishing("web", c.port)})
			if !c.refused {
				wantCode(t, created, codes.OK)
				return
			}
			_, updated := a.tryUpdate("old", func(s *musterv1.ServiceSpec) { s.Endpoint = publishing("", c.port).Endpoint })
			for _, err := range []error{created, updated} {
				wantCode(t, err, codes.FailedPrecondition, "spec.endpoint.ports[0].publishedPort")
				number, _, _ := strings.Cut(c.port, "/")
				if !strings.Contains(err.Error(), number+"/") || !strings.Contains(err.Error(), "choose another port") {
					t.Errorf("error %v does not name the port and the fix", err)
				}
			}
		})
	}
}

func TestServiceKeepsPortThatIsReservedLater(t *testing.T) {
	t.Parallel()
	subtest(t, "", func(t *testing.T) {
		a := start(t)
		web := a.create(publishing("web", "53/udp", "80"))
		a.settings(&musterv1.NetworkConfig{ReservedPorts: &musterv1.ReservedPorts{Ports: []string{"53", "54"}}})
		a.updated("web", func(s *musterv1.ServiceSpec) { s.Task.GetContainer().Image = "nginx:2" })
		a.updated("web", func(s *musterv1.ServiceSpec) {
			s.Endpoint.Ports[0].TargetPort, s.Endpoint.Ports[1].PublishedPort = 5353, 81
		})
		for name, port := range map[string]string{"another number": "54/udp", "another protocol": "53/tcp", "another mode": "53/udp@host"} {
			_, err := a.tryUpdate("web", func(s *musterv1.ServiceSpec) { s.Endpoint.Ports[0] = publishing("", port).Endpoint.Ports[0] })
			if wantCode(t, err, codes.FailedPrecondition, "spec.endpoint.ports[0].publishedPort"); t.Failed() {
				t.Error(name)
			}
		}
		// A port that was given up is not taken back.
		a.updated("web", func(s *musterv1.ServiceSpec) { s.Endpoint.Ports = s.Endpoint.Ports[1:] })
		a.completed(web.Id)
		_, err := a.RollbackService(t.Context(), &musterv1.RollbackServiceRequest{Service: "web"})
		wantCode(t, err, codes.FailedPrecondition, "spec.endpoint.ports[0].publishedPort")
	})
}

func TestNumberOfPortsIsLimited(t *testing.T) {
	t.Parallel()
	ports := func(n int) *musterv1.EndpointSpec {
		var all []string
		for i := range n {
			all = append(all, strconv.Itoa(10000+i))
		}
		return publishing("", all...).Endpoint
	}
	subtest(t, "", func(t *testing.T) {
		a := start(t)
		spec := webSpec("web")
		spec.Endpoint = ports(257)
		_, err := a.CreateService(t.Context(), &musterv1.CreateServiceRequest{Spec: spec})
		wantCode(t, err, codes.InvalidArgument, "spec.endpoint.ports")
		if !strings.Contains(err.Error(), "has 257 entries; at most 256 are allowed") {
			t.Errorf("error is %v", err)
		}
		spec.Endpoint = ports(256)
		web := a.create(spec)
		_, err = a.tryUpdate("web", func(s *musterv1.ServiceSpec) { s.Endpoint = ports(257) })
		wantCode(t, err, codes.InvalidArgument, "spec.endpoint.ports")

		// A service of an earlier version keeps more, and can have fewer.
		a.update(func(tx *store.Tx) {
			r := a.record(web.Id)
			r.Spec.Endpoint = ports(300)
			a.Tables.Services.Put(tx, web.Id, r)
		})
		a.updated("web", func(s *musterv1.ServiceSpec) { s.Task.GetContainer().Image = "nginx:2" })
		a.updated("web", func(s *musterv1.ServiceSpec) { s.Endpoint.Ports[0].PublishedPort = 9999 })
		a.updated("web", func(s *musterv1.ServiceSpec) { s.Endpoint.Ports = s.Endpoint.Ports[:290] })
		_, err = a.tryUpdate("web", func(s *musterv1.ServiceSpec) { s.Endpoint = ports(291) })
		wantCode(t, err, codes.InvalidArgument, "spec.endpoint.ports")
	})
}
