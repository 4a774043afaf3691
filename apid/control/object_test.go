package control_test

import (
	"encoding/base64"
	"fmt"
	"strings"
	"testing"
	"testing/synctest"

	"google.golang.org/grpc/codes"

	recordv1 "github.com/musterhq/muster/api/muster/record/v1"
	musterv1 "github.com/musterhq/muster/api/muster/v1"
	"github.com/musterhq/muster/internal/state"
	"github.com/musterhq/muster/internal/store"
)

func TestPageTokensOfOtherListsAreRefused(t *testing.T) {
	t.Parallel()
	synctest.Test(t, func(t *testing.T) {
		a := start(t)
		for i := range 3 {
			a.create(webSpec(fmt.Sprint("web", i)))
		}
		first, err := a.ListServices(t.Context(), &musterv1.ListServicesRequest{PageSize: 1})
		if err != nil {
			t.Fatal(err)
		}
		for name, req := range map[string]*musterv1.ListServicesRequest{
			"other filter": {PageSize: 1, PageToken: first.NextPageToken, Names: []string{"web"}},
			"garbage":      {PageToken: "???"},
			"short":        {PageToken: "AQ"},
			"long":         {PageToken: strings.Repeat("A", 10_000)},
			"version":      {PageToken: base64.RawURLEncoding.EncodeToString(make([]byte, 40))},
		} {
			_, err := a.ListServices(t.Context(), req)
			if err == nil {
				t.Errorf("%s: no error", name)
				continue
			}
			wantCode(t, err, codes.InvalidArgument, "pageToken")
		}
		_, err = a.ListTasks(t.Context(), &musterv1.ListTasksRequest{PageToken: first.NextPageToken})
		wantCode(t, err, codes.InvalidArgument, "pageToken")
		if _, err := a.ListServices(t.Context(), &musterv1.ListServicesRequest{PageSize: 2, PageToken: first.NextPageToken}); err != nil {
			t.Errorf("another page size: %v", err)
		}
	})
}

func TestObjectsAreFoundByIDNameOrUniquePrefix(t *testing.T) {
	t.Parallel()
	synctest.Test(t, func(t *testing.T) {
		a := start(t)
		ids := []string{"aaaa1000000000000000000000", "aaaa2000000000000000000000", "bbbb1000000000000000000000"}
		names := []string{"one", "two", "aaaa2"}
		a.update(func(tx *store.Tx) {
			for i, id := range ids {
				a.Tables.Services.Put(tx, id, &recordv1.Service{Spec: &musterv1.ServiceSpec{Name: names[i]}, CreatedAt: 1})
				a.Tables.Names.Put(tx, state.NameKey("service", names[i]), &recordv1.Name{Id: id})
			}
		})
		for ref, want := range map[string]string{"one": ids[0], ids[0]: ids[0], "aaaa1": ids[0], "aaaa2": ids[2], "aaaa20": ids[1], "b": ids[2]} {
			if got := a.get(ref); got.Id != want {
				t.Errorf("%s is %s, want %s", ref, got.Id, want)
			}
		}
		_, err := a.GetService(t.Context(), &musterv1.GetServiceRequest{Service: "aaaa"})
		wantCode(t, err, codes.InvalidArgument)
		if !strings.Contains(err.Error(), ids[0]+" (one)") || !strings.Contains(err.Error(), ids[1]) {
			t.Errorf("error does not name the candidates: %v", err)
		}
		_, err = a.RemoveService(t.Context(), &musterv1.RemoveServiceRequest{Service: "aaaa"})
		wantCode(t, err, codes.InvalidArgument)
	})
}

func TestRenameFreesTheFormerName(t *testing.T) {
	t.Parallel()
	synctest.Test(t, func(t *testing.T) {
		a := start(t)
		s := a.create(webSpec("one"))
		a.create(webSpec("two"))
		spec := webSpec("Two")
		_, err := a.UpdateService(t.Context(), &musterv1.UpdateServiceRequest{Service: s.Id, Version: s.Meta.Version, Spec: spec})
		wantCode(t, err, codes.AlreadyExists)
		for _, name := range []string{"three", "THREE"} {
			s = a.get(s.Id)
			up, err := a.UpdateService(t.Context(), &musterv1.UpdateServiceRequest{Service: s.Id, Version: s.Meta.Version, Spec: webSpec(name)})
			if err != nil || up.Service.Spec.Name != name || up.Service.SpecVersion != s.SpecVersion {
				t.Fatalf("renamed to %s: %v, %v", name, up, err)
			}
		}
		_, err = a.GetService(t.Context(), &musterv1.GetServiceRequest{Service: "one"})
		wantCode(t, err, codes.NotFound)
		a.create(webSpec("one"))
	})
}
