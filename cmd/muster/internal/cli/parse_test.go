package cli

import (
	"slices"
	"testing"

	"github.com/google/go-cmp/cmp"
	"google.golang.org/protobuf/testing/protocmp"

	musterv1 "github.com/musterhq/muster/api/muster/v1"
)

func TestParsePort(t *testing.T) {
	tests := map[string]*musterv1.PortConfig{
		"80":                              {TargetPort: 80},
		"8080:80":                         {PublishedPort: 8080, TargetPort: 80},
		"8080:80/udp":                     {PublishedPort: 8080, TargetPort: 80, Protocol: musterv1.PortConfig_UDP},
		"published=0,target=80,mode=host": {TargetPort: 80, PublishMode: musterv1.PortConfig_HOST},
		"published=8080,target=80,protocol=tcp,mode=ingress,name=http": {
			Name: "http", PublishedPort: 8080, TargetPort: 80, Protocol: musterv1.PortConfig_TCP, PublishMode: musterv1.PortConfig_INGRESS,
		},
		"target=80,external-traffic=local,proxy-protocol": {TargetPort: 80, ExternalTraffic: musterv1.PortConfig_LOCAL, ProxyProtocol: true},
		"":                      nil,
		"0":                     nil,
		"65536":                 nil,
		"80:x":                  nil,
		"80/icmp":               nil,
		"target=80,mode=any":    nil,
		"target=80,colour=blue": nil,
		"published=1":           nil,
	}
	for v, want := range tests {
		got, err := parsePort(v)
		if (err != nil) != (want == nil) {
			t.Errorf("parsePort(%q) error = %v, want one: %v", v, err, want == nil)
		}
		if diff := cmp.Diff(want, got, protocmp.Transform()); err == nil && diff != "" {
			t.Errorf("parsePort(%q) (-want +got):\n%s", v, diff)
		}
	}
}

func TestPortRangesAreExpanded(t *testing.T) {
	for v, want := range map[string][]string{
		"80":                     {"80"},
		"8080:80/udp":            {"8080:80/udp"},
		"published=80,target=-1": {"published=80,target=-1"},
		"80-82":                  {"80", "81", "82"},
		"8000-8002:80-82":        {"8000:80", "8001:81", "8002:82"},
		"8000-8001:80-81/sctp":   {"8000:80/sctp", "8001:81/sctp"},
		"8000-8000:80":           {"8000:80"},
		"8000-8001:80":           nil,
		"8000:80-81":             nil,
		"8001-8000:80-81":        nil,
		"1-2000":                 nil,
		"0-1":                    nil,
		"80-x":                   nil,
		"65535-65536":            nil,
	} {
		got, err := expandPorts("publish", []string{v})
		if (err != nil) != (want == nil) || err == nil && !slices.Equal(got, want) {
			t.Errorf("%q expands to %q, %v; want %q", v, got, err, want)
		}
	}
}

func TestParseNetwork(t *testing.T) {
	for v, want := range map[string]*musterv1.NetworkAttachmentConfig{
		"back": {Target: "back"},
		"name=back,alias=db,alias=sql,driver-opt=a=b=c,driver-opt=d": {
			Target: "back", Aliases: []string{"db", "sql"}, DriverOptions: map[string]string{"a": "b=c", "d": ""},
		},
		"alias=db":           nil,
		"name=back,ip=1.2.3": nil,
	} {
		got, err := parseNetwork(v)
		if (err != nil) != (want == nil) {
			t.Errorf("parseNetwork(%q) error = %v, want one: %v", v, err, want == nil)
		}
		if diff := cmp.Diff(want, got, protocmp.Transform()); err == nil && diff != "" {
			t.Errorf("parseNetwork(%q) (-want +got):\n%s", v, diff)
		}
	}
}

func FuzzParse(f *testing.F) {
	f.Add("8080:80/tcp")
	f.Add("type=bind,source=/a,target=/b")
	f.Add("nofile=1:2")
	f.Fuzz(func(t *testing.T, v string) {
		// Errors are fine; nothing may panic.
		_, _ = parsePort(v)
		_, _ = parseMount(v)
		_, _ = parseUlimit(v)
		_, _ = parseNetwork(v)
		_, _ = expandPorts("publish", []string{v})
		_, _ = nanoCPUs(v)
		_, _ = parseLabels("label", []string{v})
	})
}

func TestPrintable(t *testing.T) {
	if got, want := printable("a\tb\nc\x1b[31md\u009be"), "a b c[31mde"; got != want {
		t.Errorf("printable = %q, want %q", got, want)
	}
}
