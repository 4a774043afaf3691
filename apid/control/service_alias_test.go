package control_test

import (
	"strings"
	"testing"

	"google.golang.org/grpc/codes"

	recordv1 "github.com/musterhq/muster/api/muster/record/v1"
	musterv1 "github.com/musterhq/muster/api/muster/v1"
	"github.com/musterhq/muster/internal/state"
	"github.com/musterhq/muster/internal/store"
)

// aliased returns a spec with networks and aliases, such as "back=db,sql".
func aliased(name string, networks ...string) *musterv1.ServiceSpec {
	spec := webSpec(name)
	for _, text := range networks {
		n := &musterv1.NetworkAttachmentConfig{}
		target, aliases, ok := strings.Cut(text, "=")
		if n.Target = target; ok {
			n.Aliases = strings.Split(aliases, ",")
		}
		spec.Task.Networks = append(spec.Task.Networks, n)
	}
	return spec
}

func TestAliasThatIsNameOfAnotherServiceIsRefused(t *testing.T) {
	t.Parallel()
	for name, c := range map[string]struct {
		others []*musterv1.ServiceSpec
		spec   *musterv1.ServiceSpec
		field  string
	}{
		"name on the network":     {[]*musterv1.ServiceSpec{on("db", "back")}, aliased("web", "front", "back=sql,DB"), "spec.task.networks[1].aliases[1]"},
		"name on another network": {[]*musterv1.ServiceSpec{on("db", "front")}, aliased("web", "back=db"), ""},
		"name on no network":      {[]*musterv1.ServiceSpec{webSpec("db")}, aliased("web", "back=db"), ""},
		"own name":                {nil, aliased("web", "back=web"), ""},
		"shared alias":            {[]*musterv1.ServiceSpec{aliased("db", "back=sql")}, aliased("web", "back=sql"), ""},
		"alias of another":        {[]*musterv1.ServiceSpec{aliased("db", "front=x", "back=sql,WEB")}, aliased("web", "back"), "spec.name"},
		"alias elsewhere":         {[]*musterv1.ServiceSpec{aliased("db", "front=web")}, aliased("web", "back"), ""},
	} {
		subtest(t, name, func(t *testing.T) {
			a := start(t)
			for _, network := range []string{"front", "back"} {
				a.createNetwork(&musterv1.NetworkSpec{Name: network})
			}
			for _, other := range c.others {
				a.create(other)
			}
			check := func(err error) {
				t.Helper()
				if c.field == "" {
					wantCode(t, err, codes.OK)
					return
				}
				wantCode(t, err, codes.FailedPrecondition, c.field)
			}
			_, err := a.CreateService(t.Context(), &musterv1.CreateServiceRequest{Spec: c.spec})
			check(err)
			if c.field == "" {
				return
			}
			if c.field == "spec.name" && !strings.Contains(err.Error(), `service "db" on network "back"`) {
				t.Errorf("error %v does not name the service and the network", err)
			}
			// An update is checked alike, and so is a change of the name.
			a.create(webSpec("old"))
			_, err = a.tryUpdate("old", func(s *musterv1.ServiceSpec) { s.Name, s.Task = c.spec.Name, c.spec.Task })
			check(err)
		})
	}
}

func TestServiceKeepsItsAliases(t *testing.T) {
	t.Parallel()
	subtest(t, "two services", func(t *testing.T) {
		a := start(t)
		a.createNetwork(&musterv1.NetworkSpec{Name: "back"})
		a.create(aliased("web", "back=db"))
		// The two meet only when the other one joins the network.
		a.create(webSpec("db"))
		join := func(s *musterv1.ServiceSpec) { s.Task.Networks = on("", "back").Task.Networks }
		_, err := a.tryUpdate("db", join)
		wantCode(t, err, codes.FailedPrecondition, "spec.name")
		a.updated("web", func(s *musterv1.ServiceSpec) { s.Task.Networks[0].Aliases = nil })
		a.updated("db", join)
		_, err = a.tryUpdate("web", func(s *musterv1.ServiceSpec) { s.Task.Networks[0].Aliases = []string{"db"} })
		wantCode(t, err, codes.FailedPrecondition, "spec.task.networks[0].aliases[0]")

	})
	subtest(t, "of an earlier version", func(t *testing.T) {
		a := start(t)
		a.createNetwork(&musterv1.NetworkSpec{Name: "back"})
		a.create(aliased("web", "back=db"))
		other := a.create(on("data", "back"))
		a.update(func(tx *store.Tx) {
			r := a.record(other.Id)
			r.Spec.Name = "db"
			a.Tables.Services.Put(tx, other.Id, r)
			a.Tables.Names.Put(tx, state.NameKey("service", "db"), &recordv1.Name{Id: other.Id})
		})
		for _, name := range []string{"web", "db"} {
			a.updated(name, func(s *musterv1.ServiceSpec) { s.Task.GetContainer().Image = "nginx:2" })
		}
	})
}
