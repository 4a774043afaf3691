package apid_test

import (
	"bytes"
	"encoding/base64"
	"fmt"
	"net/http"
	"strings"
	"testing"
	"testing/synctest"

	"google.golang.org/grpc/codes"

	musterv1 "github.com/musterhq/muster/api/muster/v1"
	"github.com/musterhq/muster/internal/kv"
)

func secretSpec(name string, data []byte) *musterv1.SecretSpec {
	return &musterv1.SecretSpec{Name: name, Data: data, Labels: map[string]string{"team": "web"}}
}

func (a *api) createSecret(spec *musterv1.SecretSpec) *musterv1.Secret {
	a.t.Helper()
	resp, err := a.CreateSecret(a.t.Context(), &musterv1.CreateSecretRequest{Spec: spec})
	if err != nil {
		a.t.Fatal(err)
	}
	return resp.Secret
}

// TestSecretDataIsNowhereButSealed reads all answers and the whole store.
func TestSecretDataIsNowhereButSealed(t *testing.T) {
	t.Parallel()
	synctest.Test(t, func(t *testing.T) {
		c := newCluster(t)
		a := c.apid()
		const canary = "canary-3f9a1c"
		data := bytes.Repeat([]byte(canary), 20_000)
		w := a.watch(&musterv1.WatchRequest{Kinds: []musterv1.ObjectKind{musterv1.ObjectKind_SECRET}, IncludeOld: true})
		body := fmt.Sprintf(`{"name": "app", "labels": {"team": "web"}, "data": %q}`, base64.StdEncoding.EncodeToString(data))
		answers := []string{}
		version := func(r string) string {
			_, rest, _ := strings.Cut(r, `"version":`)
			return strings.Trim(strings.SplitN(rest, ",", 2)[0], " \"")
		}
		do := func(method, path, body string) {
			t.Helper()
			got := a.rest(method, path, body)
			if got.code != http.StatusOK {
				t.Fatalf("%s %s: %d %s", method, path, got.code, got.body)
			}
			answers = append(answers, got.body)
		}
		do(http.MethodPost, "/v1/secrets", body)
		do(http.MethodGet, "/v1/secrets/APP", "")
		do(http.MethodPost, "/v1/secrets/app:rotate", fmt.Sprintf(`{"version": %q, "data": %q}`, version(answers[1]), base64.StdEncoding.EncodeToString([]byte(canary))))
		do(http.MethodPut, "/v1/secrets/app?version="+version(answers[2]), `{"labels": {"team": "api"}}`)
		do(http.MethodGet, "/v1/secrets?labels=team%3Dapi", "")
		id := strings.Trim(strings.SplitN(strings.SplitN(answers[0], `"id":`, 2)[1], ",", 2)[0], " \"")
		answers = append(answers, fmt.Sprint(w.until("the update", is(musterv1.WatchAction_UPDATE, musterv1.ObjectKind_SECRET, id))))
		for i, answer := range answers {
			if !strings.Contains(answer, "app") || strings.Contains(answer, canary) || strings.Contains(answer, "Y2FuYXJ5") || strings.Contains(answer, `"data"`) {
				t.Errorf("answer %d: %s", i, answer)
			}
		}
		pairs, _, err := c.kv.List(t.Context(), "", kv.ListOptions{})
		if err != nil || len(pairs) == 0 {
			t.Fatalf("%d pairs, %v", len(pairs), err)
		}
		for _, p := range pairs {
			if bytes.Contains(p.Value, []byte(canary)) {
				t.Errorf("key %s of the store holds the data", p.Key)
			}
		}
		do(http.MethodDelete, "/v1/secrets/app", "")
		w.until("the removal", is(musterv1.WatchAction_DELETE, musterv1.ObjectKind_SECRET, id))
		eventually(t, "the data is swept", func() bool {
			for range c.tables.SealedBlobs.Scan(c.store.Snapshot(), "") {
				return false
			}
			return true
		})
	})
}

func TestSecretsAreListedAndFound(t *testing.T) {
	t.Parallel()
	synctest.Test(t, func(t *testing.T) {
		c := newCluster(t)
		a, b := c.apid(), c.apid()
		one := a.createSecret(secretSpec("one", []byte("x")))
		b.createSecret(secretSpec("two", []byte("x")))
		for _, ref := range []string{one.Id, "ONE", one.Id[:10]} {
			got, err := b.GetSecret(t.Context(), &musterv1.GetSecretRequest{Secret: ref})
			if err != nil || got.Secret.Id != one.Id || got.Secret.RotatedAt == nil {
				t.Errorf("get %q: %v, %v", ref, got, err)
			}
		}
		list, err := a.ListSecrets(t.Context(), &musterv1.ListSecretsRequest{NamePrefixes: []string{"t"}})
		if err != nil || len(list.Secrets) != 1 || list.Secrets[0].Spec.Name != "two" {
			t.Errorf("list: %v, %v", list, err)
		}
		_, err = a.CreateSecret(t.Context(), &musterv1.CreateSecretRequest{Spec: secretSpec("Two", []byte("y"))})
		wantCode(t, err, codes.AlreadyExists)
		// Names of configs are others.
		a.createConfig(configSpec("one", []byte("x")))
	})
}
