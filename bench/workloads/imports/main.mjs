import Ajv from "ajv";
import express from "express";
import lodash from "lodash";
import ts from "typescript";
import { z } from "zod";

const validate = new Ajv.default().compile({ type: "number" });
const app = express();
const schema = z.number();

// Little work, after the loading of large dependencies.
export const handler = async () => {
  const n = schema.parse(lodash.sum(lodash.range(100)));
  return `${n} ${validate(n)} ${typeof app} ${ts.version}`;
};
