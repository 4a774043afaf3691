package apid_test

import (
	"fmt"
	"net/http"
	"strings"
	"sync"
	"testing"
	"testing/synctest"

	"google.golang.org/grpc/codes"
	"google.golang.org/grpc/status"

	recordv1 "github.com/musterhq/muster/api/muster/record/v1"
	musterv1 "github.com/musterhq/muster/api/muster/v1"
	"github.com/musterhq/muster/internal/store"
)

func (a *api) createNetwork(spec *musterv1.NetworkSpec) *musterv1.Network {
	a.t.Helper()
	resp, err := a.CreateNetwork(a.t.Context(), &musterv1.CreateNetworkRequest{Spec: spec})
	if err != nil {
		a.t.Fatal(err)
	}
	return resp.Network
}

func TestNetworksOverREST(t *testing.T) {
	t.Parallel()
	synctest.Test(t, func(t *testing.T) {
		a := newCluster(t).apid()
		for _, s := range []struct {
			name, method, path, body string
			code                     int
			want                     string
		}{
			{"create", "POST", "/v1/networks", `{"name":"back","labels":{"team":"web"},"ipam":{"configs":[{"subnet":"10.1.0.0/16"}]}}`, 200, `"subnet":"10.1.0.0/16"`},
			{"create again", "POST", "/v1/networks", `{"name":"BACK"}`, 409, `a network called \"back\" already exists`},
			{"reserved name", "POST", "/v1/networks", `{"name":"host"}`, 400, "spec.name"},
			{"encrypted", "POST", "/v1/networks", `{"name":"a","encrypted":true}`, 400, "spec.encrypted"},
			{"config from", "POST", "/v1/networks", `{"name":"a","configFrom":"b"}`, 501, "spec.configFrom"},
			{"unknown field", "POST", "/v1/networks", `{"name":"a","subnet":"10.1.0.0/16"}`, 400, "subnet"},
			{"get", "GET", "/v1/networks/Back", "", 200, `"status":{}`},
			{"list", "GET", "/v1/networks?labels=team%3Dweb", "", 200, `"name":"back"`},
			{"list others", "GET", "/v1/networks?labels=team%3Dapi", "", 200, `{"networks":[]}`},
			{"remove", "DELETE", "/v1/networks/back", "", 200, "{}"},
			{"get after", "GET", "/v1/networks/back", "", 404, "back"},
			{"document", "GET", "/openapi.json", "", 200, "/v1/networks/{network}"},
		} {
			if got := a.rest(s.method, s.path, s.body); got.code != s.code || !strings.Contains(strings.ReplaceAll(got.body, `": "`, `":"`), s.want) {
				t.Errorf("%s: %d %s, want %d with %s", s.name, got.code, got.body, s.code, s.want)
			}
		}
		if got := a.rest(http.MethodPut, "/v1/networks/back", `{"name":"back"}`); got.code != http.StatusMethodNotAllowed {
			t.Errorf("a network is changed: %d %s", got.code, got.body)
		}
	})
}

func TestWatchNetworks(t *testing.T) {
	t.Parallel()
	synctest.Test(t, func(t *testing.T) {
		c := newCluster(t)
		a, other := c.apid(), c.apid()
		w := a.watch(&musterv1.WatchRequest{Kinds: []musterv1.ObjectKind{musterv1.ObjectKind_NETWORK}, Labels: []string{"team=web"}, IncludeOld: true})
		a.createNetwork(&musterv1.NetworkSpec{Name: "other"})
		n := a.createNetwork(&musterv1.NetworkSpec{Name: "back", Labels: map[string]string{"team": "web"}})
		w.until("the creation", is(musterv1.WatchAction_CREATE, musterv1.ObjectKind_NETWORK, n.Id))
		token := w.token
		c.update(func(tx *store.Tx) {
			c.tables.NetworkStates.Put(tx, n.Id, &recordv1.NetworkState{Subnets: []string{"10.64.0.0/16"}, Vni: 4097})
		})
		e := w.until("the addresses", is(musterv1.WatchAction_UPDATE, musterv1.ObjectKind_NETWORK, n.Id))
		if e.GetNetwork().GetStatus().GetVni() != 4097 || e.GetOldNetwork().GetIpam() != nil {
			t.Errorf("updated: %v", e)
		}
		if _, err := a.RemoveNetwork(t.Context(), &musterv1.RemoveNetworkRequest{Network: "back"}); err != nil {
			t.Fatal(err)
		}
		// Another replica knows what was since.
		resumed := other.watch(&musterv1.WatchRequest{ResumeToken: token})
		resumed.until("the removal", is(musterv1.WatchAction_DELETE, musterv1.ObjectKind_NETWORK, n.Id))
	})
}

// A name is one network's, and a cluster has one ingress network, whichever replicas are
// asked at the same time.
func TestNetworkIsUnique(t *testing.T) {
	t.Parallel()
	for name, spec := range map[string]func(i int) *musterv1.NetworkSpec{
		"name": func(int) *musterv1.NetworkSpec { return &musterv1.NetworkSpec{Name: "one"} },
		"ingress": func(i int) *musterv1.NetworkSpec {
			return &musterv1.NetworkSpec{Name: fmt.Sprint("n", i), Ingress: true}
		},
	} {
		t.Run(name, func(t *testing.T) {
			t.Parallel()
			synctest.Test(t, func(t *testing.T) {
				c := newCluster(t)
				replicas := []*api{c.apid(), c.apid()}
				c.spreadTransactions()
				codesOf := make([]codes.Code, 8)
				var running sync.WaitGroup
				for i := range codesOf {
					running.Go(func() {
						_, err := replicas[i%2].CreateNetwork(t.Context(), &musterv1.CreateNetworkRequest{Spec: spec(i)})
						codesOf[i] = status.Code(err)
					})
				}
				running.Wait()
				counts := map[codes.Code]int{}
				for _, code := range codesOf {
					counts[code]++
				}
				if counts[codes.OK] != 1 || counts[codes.AlreadyExists] != len(codesOf)-1 {
					t.Errorf("codes are %v, want one OK and the rest AlreadyExists", counts)
				}
			})
		})
	}
}

// A service is created on a network while the network is removed: one of the two is
// refused, whichever replicas are asked.
func TestNetworkIsNotRemovedUnderNewService(t *testing.T) {
	t.Parallel()
	synctest.Test(t, func(t *testing.T) {
		c := newCluster(t)
		replicas := []*api{c.apid(), c.apid()}
		c.spreadTransactions()
		removed, created := 0, 0
		for i := range 40 {
			name := fmt.Sprint("n", i)
			replicas[0].createNetwork(&musterv1.NetworkSpec{Name: name})
			spec := webSpec("s" + name)
			spec.Task.Networks = []*musterv1.NetworkAttachmentConfig{{Target: name}}
			var running sync.WaitGroup
			var createErr, removeErr error
			running.Go(func() {
				_, createErr = replicas[i%2].CreateService(t.Context(), &musterv1.CreateServiceRequest{Spec: spec})
			})
			running.Go(func() {
				_, removeErr = replicas[(i/2)%2].RemoveNetwork(t.Context(), &musterv1.RemoveNetworkRequest{Network: name})
			})
			running.Wait()
			switch {
			case createErr == nil && status.Code(removeErr) == codes.FailedPrecondition:
				created++
			case removeErr == nil && status.Code(createErr) == codes.FailedPrecondition:
				removed++
			default:
				t.Errorf("create: %v; remove: %v", createErr, removeErr)
			}
		}
		if created == 0 || removed == 0 {
			t.Errorf("%d services were created and %d networks removed, want some of each", created, removed)
		}
	})
}

// Services are created with one port at the same time: one of them gets it, and all share
// one ingress network.
func TestPublishedPortIsUnique(t *testing.T) {
	t.Parallel()
	synctest.Test(t, func(t *testing.T) {
		c := newCluster(t)
		replicas := []*api{c.apid(), c.apid()}
		c.spreadTransactions()
		codesOf := make([]codes.Code, 9)
		var running sync.WaitGroup
		for i := range codesOf {
			running.Go(func() {
				spec := webSpec(fmt.Sprint("s", i))
				spec.Endpoint = &musterv1.EndpointSpec{Ports: []*musterv1.PortConfig{{TargetPort: 80, PublishedPort: uint32(8080 + i%3)}}}
				_, err := replicas[i%2].CreateService(t.Context(), &musterv1.CreateServiceRequest{Spec: spec})
				codesOf[i] = status.Code(err)
			})
		}
		running.Wait()
		counts := map[codes.Code]int{}
		for _, code := range codesOf {
			counts[code]++
		}
		if counts[codes.OK] != 3 || counts[codes.FailedPrecondition] != 6 {
			t.Errorf("codes are %v, want three OK and six FailedPrecondition", counts)
		}
		list, err := replicas[0].ListNetworks(t.Context(), &musterv1.ListNetworksRequest{})
		if err != nil || len(list.Networks) != 1 || list.Networks[0].Spec.Name != "ingress" {
			t.Errorf("networks: %v, %v", list, err)
		}
		seen := map[string]bool{}
		for e := range c.tables.Services.Scan(c.store.Snapshot(), "") {
			seen[e.Value.IngressNetworkId] = true
		}
		if len(seen) != 1 || !seen[list.GetNetworks()[0].GetId()] {
			t.Errorf("services are on ingress networks %v", seen)
		}
	})
}
