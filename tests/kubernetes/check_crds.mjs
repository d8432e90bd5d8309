// Checks custom resources against their definitions: `node check_crds.mjs DIRECTORY < objects.json`. Prints a JSON list
// of complaints. Fields that a definition does not have are those that its check never looks at.
import { readFileSync } from "node:fs";
import { resolve } from "node:path";
import { pathToFileURL } from "node:url";

const PROMETHEUS = "prometheus-operator/_schemas/ComGithubPrometheusOperatorPrometheusOperatorPkgApisMonitoringV1";
const CHECKS = {
  HTTPRoute: "gateway-api/_schemas/IoK8sSigsGatewayApiApisV1HTTPRoute.js",
  PodMonitor: `${PROMETHEUS}PodMonitor.js`,
  PrometheusRule: `${PROMETHEUS}PrometheusRule.js`,
  ScaledObject: "keda/_schemas/ComGithubKedacoreKedaV2ApisKedaV1alpha1ScaledObject.js",
  ServiceMonitor: `${PROMETHEUS}ServiceMonitor.js`,
};

function watched(value, path, seen) {
  if (value === null || typeof value !== "object") return value;
  return new Proxy(value, {
    get(target, key) {
      if (typeof key === "symbol" || !Object.hasOwn(target, key)) return target[key];
      seen.add(`${path}/${key}`);
      return watched(target[key], `${path}/${key}`, seen);
    },
  });
}

function* paths(value, path) {
  if (value === null || typeof value !== "object") return;
  for (const key of Object.keys(value)) {
    yield `${path}/${key}`;
    yield* paths(value[key], `${path}/${key}`);
  }
}

const complaints = [];
for (const object of JSON.parse(readFileSync(0, "utf8"))) {
  const file = resolve(process.argv[2], "node_modules/@kubernetes-models", CHECKS[object.kind]);
  const { validate } = await import(pathToFileURL(file).href);
  const seen = new Set();
  const name = `${object.kind} ${object.metadata.name}`;
  if (!validate(watched(object, "", seen))) {
    complaints.push(...validate.errors.map((each) => `${name}: ${each.instancePath} ${each.message ?? each.keyword}`));
  }
  const unknown = [...paths(object, "")].filter((path) => !seen.has(path));
  complaints.push(...unknown.map((path) => `${name}: ${path} is unknown`));
}
console.log(JSON.stringify(complaints));
